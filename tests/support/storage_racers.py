"""What processes of the storage tests do; each prints what came of it as JSON.

python -m tests.support.storage_racers absent URI COUNT
python -m tests.support.storage_racers count URI COUNT
python -m tests.support.storage_racers overwrite URI SIZE_BYTES
"""

import json
import os
import sys

from mltrain.storage import ConflictError, Store, open_store


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _wait_for_the_others() -> None:
    _say("ready")
    sys.stdin.readline()


def absent(store: Store, count: int) -> None:
    """Puts ``count`` objects if absent, each with something of its own in it; says which it won."""
    _wait_for_the_others()
    won = [n for n in range(count) if store.put_if_absent(f"prize-{n}", f"{os.getpid()} {n}".encode())]
    _say(json.dumps({"pid": os.getpid(), "won": won}))


def count(store: Store, times: int) -> None:
    """Adds one to a counter ``times`` times."""
    _wait_for_the_others()
    conflicts = 0
    for _ in range(times):
        while True:
            data, tag = store.get_with_tag("counter")
            number, history = int(data.split()[0]), data
            try:
                # The history makes every version's content, and with it every tag, unique.
                store.put_if_match("counter", b"%d %d.%s" % (number + 1, os.getpid(), history[-200:]), tag)
                break
            except ConflictError:
                conflicts += 1
    _say(json.dumps({"conflicts": conflicts}))


def overwrite(store: Store, size: int) -> None:
    """Writes whole versions over each other until it is killed."""
    version = 0
    while True:
        store.put("object", bytes([version % 256]) * size)
        version += 1
        _say(str(version))


if __name__ == "__main__":
    _, what, uri, number = sys.argv
    {"absent": absent, "count": count, "overwrite": overwrite}[what](open_store(uri, deadline_s=60), int(number))
