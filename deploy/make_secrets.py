"""Write the secrets that deploy/compose.yaml mounts: each a file, and none a second time."""

import secrets
from pathlib import Path

FOLDER = Path(__file__).parent / "secrets"


def main() -> None:
    """Write the files that lack; the database's URL holds the password beside it."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)  # nobody else reaches the files, which containers read
    password = FOLDER / "postgres_password"
    for name in ("chatbot_api_key", "postgres_password", "chatbot_database_url"):
        path = FOLDER / name
        if path.exists():
            print(f"{path} is there and stays.")
            continue
        text = secrets.token_urlsafe(32)
        if name == "chatbot_database_url":
            text = f"postgresql+psycopg://chatbot:{password.read_text()}@database/chatbot"
        path.write_text(text)
        path.chmod(0o444)
        print(f"{path} is written.")


if __name__ == "__main__":
    main()
