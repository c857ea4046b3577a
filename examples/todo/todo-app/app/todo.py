"""The todo list: a page, and the list behind it in Redis."""

import os

import redis
from flask import Flask, jsonify, request

KEY = "todos"
TEXT_MAX = 1024
VERSION = os.environ.get("TODO_VERSION", "v1")

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024


def store(variable, host):
    """A client of the Redis that a variable names. It connects when it is used first."""
    return redis.Redis(host=os.environ.get(variable, host), decode_responses=True, socket_timeout=5)


master = store("REDIS_MASTER", "redis-master")
slave = store("REDIS_SLAVE", "redis-slave")

DELETE_BUTTON = """
    const button = document.createElement("button");
    button.textContent = "Delete";
    button.onclick = () => change("DELETE", text);
    item.append(button);"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Todo list %(version)s</title>
<h1>Todo list!</h1>
<ul></ul>
<form><input placeholder="Todo" required><button>Add</button></form>
<script>
async function change(method, text) {
  await fetch("todos", {method, headers: {"Content-Type": "application/json"}, body: JSON.stringify({text})});
  await show();
}
async function show() {
  const {todos} = await (await fetch("todos")).json();
  document.querySelector("ul").replaceChildren(...todos.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;%(delete)s
    return item;
  }));
}
document.querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const input = document.querySelector("input");
  change("POST", input.value);
  input.value = "";
};
show();
</script>
</html>
""" % {"version": VERSION, "delete": DELETE_BUTTON if VERSION != "v1" else ""}


def text_of(body):
    """The item that a request speaks of, or None."""
    text = body.get("text") if isinstance(body, dict) else None
    return text if isinstance(text, str) and 0 < len(text) <= TEXT_MAX else None


@app.get("/")
def page():
    """The same for every request to one version."""
    return PAGE


@app.get("/todos")
def show():
    """The list, in the order in which it was written."""
    return jsonify(version=VERSION, todos=slave.lrange(KEY, 0, -1))


@app.post("/todos")
def add():
    """Writes one item down."""
    text = text_of(request.get_json(silent=True))
    if text is None:
        return jsonify(error="send JSON with a field 'text' of 1 to %d characters" % TEXT_MAX), 400
    master.rpush(KEY, text)
    return jsonify(text=text), 201


def remove():
    """Takes one item off the list."""
    text = text_of(request.get_json(silent=True))
    if text is None:
        return jsonify(error="send JSON with a field 'text' of 1 to %d characters" % TEXT_MAX), 400
    if not master.lrem(KEY, 1, text):
        return jsonify(error="there is no such item"), 404
    return "", 204


if VERSION != "v1":
    app.delete("/todos")(remove)


@app.get("/healthz")
def healthz():
    """Ready when both can be reached: an answer without them would be an error."""
    try:
        master.ping()
        slave.ping()
    except redis.RedisError as error:
        return "%s\n" % error, 503
    return "ok\n"
