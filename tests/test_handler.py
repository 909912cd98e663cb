"""What handler.py promises: the pipeline's answers over HTTP, and errors as JSON."""

import ast
import base64
import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from helpers import ROOT

from captions.job import BUNDLED
from handler import EndpointHandler

SONG = ROOT / "page" / "examples" / "organ-rock.ogg"


@pytest.fixture(scope="module")
def handler():
    return EndpointHandler(str(BUNDLED))


@pytest.fixture(scope="module")
def address(handler):
    """A server that reads requests as the Hub's toolkit for custom handlers does."""

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_json = self.headers["Content-Type"] == "application/json"
            answer = json.dumps(handler(json.loads(body) if is_json else {"inputs": body})).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def post(address: str, body: bytes, kind: str = "application/json"):
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def ask(address: str, **parameters):
    body = {"inputs": base64.b64encode(SONG.read_bytes()).decode(), "parameters": parameters}
    return post(address, json.dumps(body).encode())


def test_it_needs_nothing_of_this_repository_but_the_checkpoint():
    tree = ast.parse((ROOT / "handler.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names} == {"transformers"}


def test_a_file_in_the_body_has_the_caption_of_the_pipeline(address, handler):
    expected = handler.captioner(str(SONG))
    for found in (post(address, SONG.read_bytes(), "audio/ogg"), ask(address)):
        assert found == {name: expected[name] for name in ("duration", "start", "caption", "score", "flags")} | {
            "alternatives": []
        }


def test_parameters_are_those_of_the_pipeline(address, handler):
    found = ask(address, candidates="a sad waltz with violin", return_candidates=True, num_beams=2, selection="best")
    expected = handler.captioner(str(SONG), candidates="a sad waltz with violin", num_beams=2, selection="best")
    assert (found["caption"], found["candidates"]) == (expected["caption"], expected["candidates"])
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert found["candidates"][0]["text"] == "a sad waltz with violin"
    assert "explanation" in ask(address, explain=True)
    spans = ask(address, spans={"min_span": 5.0}, return_candidates=True)
    assert spans == json.loads(json.dumps(handler.captioner(str(SONG), spans={"min_span": 5.0})))
    assert all("candidates" not in span for span in ask(address, spans=True))


@pytest.mark.parametrize(
    "parameters, error",
    [
        ({"beams": 3}, "unknown parameter 'beams': expected some of candidates, return_candidates, spans, "),
        ({"num_beams": "3"}, "parameter num_beams is '3': expected a whole number from 1 up"),
        ({"num_beams": True}, "parameter num_beams is True: expected a whole number from 1 up"),
        ({"candidates": [1]}, "parameter candidates is [1]: expected a caption or a list of captions"),
        ({"spans": {"hop": 5.0}}, "hop 5 is a multiple of 2.5 s"),
        ({"spans": {"hops": 5.0}}, "unexpected keyword argument 'hops'"),
        ({"spans": True, "candidates": "a waltz"}, "each span has candidates of its own"),
    ],
)
def test_wrong_parameters_are_errors_that_name_them(address, parameters, error):
    found = ask(address, **parameters)
    assert {*found} == {"error"} and error in found["error"]


@pytest.mark.parametrize(
    "body, error",
    [
        ({}, "inputs are missing: expected the bytes of an audio or video file, or these bytes in base64"),
        ({"inputs": "https://example.org/song.mp3"}, "URLs are not fetched"),
        ({"inputs": [1, 2]}, "inputs are of the type list: expected the bytes"),
        ({"inputs": "c29uZw==", "parameters": [1]}, "parameters are of the type list: expected an object"),
        ({"inputs": "bm8gbXVzaWM="}, "expected audio, or video with sound"),
    ],
)
def test_wrong_inputs_are_errors(address, body, error):
    found = post(address, json.dumps(body).encode())
    assert {*found} == {"error"} and error in found["error"]
    assert "Traceback" not in found["error"] and "\n" not in found["error"]
