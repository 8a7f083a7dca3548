"""A session is paused, and goes on later, in another sandbox and by another program."""

from __future__ import annotations

from cloud_sandbox import Session


def begin() -> str:
    """Works for a while and goes away. Returns the session's id, all that has to be remembered."""
    session = Session.create(metadata={"project": "book"})
    session.write_file("/workspace/chapter1.txt", "It was a dark and stormy night.")
    session.run_code("words = open('/workspace/chapter1.txt').read().split()")
    session.pause("checkpointed")
    print("paused:", session.info.pause_depth)
    return session.session_id


def go_on(session_id: str) -> None:
    """Comes back days later."""
    session = Session.get(session_id)
    manifest = session.resume().resume_manifest
    if manifest is not None:
        print("restored files:", manifest.files > 0)
    print("words:", session.run_code("len(words)").text)
    print(session.read_file("/workspace/chapter1.txt"))
    session.delete()


def main() -> None:
    """Does both."""
    go_on(begin())


if __name__ == "__main__":
    main()
