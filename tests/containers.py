"""What the tests of images share: a program that builds and runs, its options here, a base."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import chatbot_arch.measure.images as images
import chatbot_arch.measure.results as results

ROOT = Path(__file__).parent.parent
BASE, POSTGRES = "localhost/chatbot-base", "localhost/chatbot-postgres"
PACKAGES = "python3,python3-venv,ca-certificates"
# podman as root on a machine without systemd: no network of its own, no limits, no timers.
BUILD_HERE = ("--isolation=chroot", "--layers")
RUN_HERE = ("--runtime=runc", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
NO_TIMER = "--no-healthcheck"


def is_bare() -> bool:
    """Return whether this is a machine without systemd."""
    return not Path("/run/systemd/system").exists()


def find_program() -> images.Program:
    """Return what builds and runs containers here; skip the test if nothing does."""
    try:
        name = images.find_program()
    except results.MeasureError as error:
        pytest.skip(str(error))
    if name == "podman" and is_bare():
        return images.Program(name, BUILD_HERE, (*RUN_HERE, NO_TIMER))
    return images.Program(name)


def has(program: images.Program, name: str) -> bool:
    """Return whether there is an image of that name."""
    command = [program.name, "image", "inspect", name]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def make_base(program: images.Program, folder: Path) -> str:
    """Return a base image: of Debian's packages where they can be had, else the Dockerfile's."""
    if has(program, BASE):
        return BASE
    if not shutil.which("mmdebstrap") or os.geteuid():
        return ""
    archive = folder / "base.tar"
    command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", archive]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if made.returncode:
        pytest.skip(f"Debian's packages cannot be had: {made.stderr.splitlines()[-1]}")
    program.call("import", str(archive), BASE, timeout_s=300)
    return BASE


def make_postgres(program: images.Program, base: str) -> str:
    """Return an image that serves PostgreSQL as compose.yaml wants it."""
    if not base:
        return ""  # the official one
    context = ROOT / "tests" / "postgres"
    program.call(
        *("build", f"--build-arg=BASE={base}", f"--tag={POSTGRES}"),
        *(*program.build_options, str(context)),
        timeout_s=900,
    )
    return POSTGRES
