"""python-small-import: a Flask service with few imports."""
from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def index():
    return jsonify(ok=True)


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=18080, threaded=True)
