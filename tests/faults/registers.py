"""Counts up a few ConfigMaps by many clients at once and watches them, until its standard input ends.

Every line of its output is one thing that happened, as JSON, with the moments on this machine's monotonic clock between
which it took effect:
  {"kind": "write", "who", "name", "token", "n", "version", "from", "to"}   acknowledged
  {"kind": "lost",  "who", "name", "token", "n"}                            no answer came: done or not
  {"kind": "read",  "who", "name", "n", "version", "from", "to"}
  {"kind": "event", "who", "type", "name", "n", "token", "version"}         as a watcher saw it
  {"kind": "end", "who"}
"""
import http.client
import json
import ssl
import sys
import threading
import time
import urllib.parse

DIRECTORY, SERVER = sys.argv[1:3]
URL = "/api/v1/namespaces/default/configmaps"
NAMES = ["register-a", "register-b", "register-c"]
WRITERS, WATCHERS = 6, 2

context = ssl.create_default_context(cafile=f"{DIRECTORY}/ca")
context.load_cert_chain(f"{DIRECTORY}/cert", f"{DIRECTORY}/key")
stopping, output = threading.Event(), threading.Lock()


def say(**said):
    with output:
        print(json.dumps(said), flush=True)


class Connection:
    """One connection, made anew when it broke."""

    def __init__(self):
        self.connection = None

    def open(self):
        if self.connection is None:
            place = urllib.parse.urlsplit(SERVER)
            self.connection = http.client.HTTPSConnection(place.hostname, place.port, timeout=60, context=context)
        return self.connection

    def ask(self, method, path, body=None):
        """Status and body; None if no answer came."""
        try:
            connection = self.open()
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            return None

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def must(self, method, path, body=None):
        while True:
            answer = self.ask(method, path, body)
            if answer is not None and answer[0] < 500 and answer[0] != 429:
                return answer
            time.sleep(0.02)  # As any client, it does not ask a server that is away without a pause.


def register(name, n, token):
    data = {"n": str(n), "token": token}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def read_out(found):
    return int(found["data"]["n"]), int(found["metadata"]["resourceVersion"])


def write(who):
    connection, turn = Connection(), 0
    while not stopping.is_set():
        turn += 1
        name = NAMES[(turn + len(who)) % len(NAMES)]
        begun = time.monotonic()
        status, found = connection.must("GET", f"{URL}/{name}")
        assert status == 200, found
        n, version = read_out(found)
        say(kind="read", who=who, name=name, n=n, version=version, **{"from": begun, "to": time.monotonic()})
        token = f"{who}-{turn}"
        changed = register(name, n + 1, token)
        changed["metadata"]["resourceVersion"] = str(version)
        begun = time.monotonic()
        answer = connection.ask("PUT", f"{URL}/{name}", changed)
        ended = time.monotonic()
        if answer is None or answer[0] >= 500:
            say(kind="lost", who=who, name=name, token=token, n=n + 1)
            time.sleep(0.02)
        elif answer[0] == 200:
            _, version = read_out(answer[1])
            say(kind="write", who=who, name=name, token=token, n=n + 1, version=version,
                **{"from": begun, "to": ended})
        else:
            assert answer[0] in (409, 429), answer
    say(kind="end", who=who)


def watch(who, since, last):
    """Every event after version `since`, over as many watches as it takes, until all of `last()` was seen."""
    connection = Connection()
    while True:
        try:
            wanted = last()
            if wanted is not None and since >= wanted:
                break
            stream = connection.open()
            stream.request("GET", f"{URL}?watch=true&allowWatchBookmarks=true&timeoutSeconds=2&resourceVersion={since}")
            answer = stream.getresponse()
            assert answer.status < 400 or answer.status >= 500 or answer.status == 429, answer.read()
            for line in answer if answer.status == 200 else []:
                event = json.loads(line)
                assert event["type"] != "ERROR", event
                found = event["object"]
                since = int(found["metadata"]["resourceVersion"])
                if event["type"] != "BOOKMARK" and found["metadata"]["name"] in NAMES:
                    n, version = read_out(found)
                    say(kind="event", who=who, type=event["type"], name=found["metadata"]["name"], n=n,
                        token=found["data"]["token"], version=version)
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            # The last line may be cut: it was not said, and comes with the next watch.
            time.sleep(0.02)
        connection.close()
    say(kind="end", who=who)


def main():
    connection, newest = Connection(), []
    for name in NAMES:
        status, found = connection.must("POST", URL, register(name, 0, "begin"))
        assert status == 201, found
    status, found = connection.must("GET", URL)
    assert status == 200, found
    since = int(found["metadata"]["resourceVersion"])
    writers = [threading.Thread(target=write, args=(f"writer-{i}",)) for i in range(WRITERS)]
    watchers = [
        threading.Thread(target=watch, args=(f"watcher-{i}", since, lambda: newest[0] if newest else None))
        for i in range(WATCHERS)
    ]
    for thread in writers + watchers:
        thread.start()
    sys.stdin.read()
    stopping.set()
    for thread in writers:
        thread.join()
    versions = []
    for name in NAMES:
        begun = time.monotonic()
        n, version = read_out(connection.must("GET", f"{URL}/{name}")[1])
        versions.append(version)
        say(kind="read", who="last", name=name, n=n, version=version, **{"from": begun, "to": time.monotonic()})
    newest.append(max(versions))
    for thread in watchers:
        thread.join()
    say(kind="end", who="all")


main()
