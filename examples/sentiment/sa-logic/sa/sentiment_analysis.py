"""The sentiment service: one question, one answer."""

from flask import Flask, jsonify, request

from lexicon import polarity

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024


@app.post("/analyse/sentiment")
def analyse_sentiment():
    """Scores the field `sentence` of the JSON body."""
    body = request.get_json(silent=True)
    if not isinstance(body, dict) or not isinstance(body.get("sentence"), str):
        return jsonify(error="send JSON with a text field 'sentence'"), 400
    return jsonify(sentence=body["sentence"], polarity=polarity(body["sentence"]))


@app.get("/healthz")
def healthz():
    """Says that the service is up."""
    return "ok\n"
