"""python-large-import: the same service, with the scientific stack imported first."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy
import pandas
import scipy.optimize
import scipy.stats
from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def index():
    frame = pandas.DataFrame({"x": numpy.arange(10)})
    return jsonify(ok=True, mean=float(frame.x.mean()))


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=18080, threaded=True)
