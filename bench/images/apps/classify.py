"""ai-classify: loads a generated model, classifies one input, answers once.

    classify.py make     writes the weights (about 300 MB, seeded)
    classify.py          serves the result on port 18080
"""
import http.server
import json
import sys

import numpy

LAYERS = [(4096, 4096)] * 4 + [(4096, 2048), (2048, 1000)]
WEIGHTS = "/srv/app/weights.npz"


def make():
    random = numpy.random.default_rng(7)
    arrays = {
        f"w{i}": random.standard_normal(shape, dtype=numpy.float32)
        for i, shape in enumerate(LAYERS)
    }
    numpy.savez(WEIGHTS, **arrays)


def classify():
    with numpy.load(WEIGHTS) as weights:
        x = numpy.linspace(0, 1, LAYERS[0][0], dtype=numpy.float32)
        for i in range(len(LAYERS)):
            x = numpy.maximum(x @ weights[f"w{i}"], 0)
            x /= numpy.linalg.norm(x)
    return int(x.argmax())


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"class": RESULT}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    if sys.argv[1:] == ["make"]:
        make()
    else:
        RESULT = classify()
        http.server.HTTPServer(("127.0.0.1", 18080), Handler).serve_forever()
