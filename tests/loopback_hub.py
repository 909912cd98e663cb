"""A Hub on this machine with model repositories in memory, for processes started with `hub.environment(home)`."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class LoopbackHub(ThreadingHTTPServer):
    """
    A server whose `repos` map repositories to commits (the last is `main`) and commits to files; `log` lists requests.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}  # uploaded but not committed, by SHA-256
        self.log: list[str] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_loopback",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        commits = self.repos[repo]
        return commits[self.commit(repo, revision)]

    def commit(self, repo: str, revision: str = "main") -> str:
        return next(reversed(self.repos[repo])) if revision == "main" else revision

    def downloads(self) -> list[str]:
        """Files that were requested, in order: `owner/name/file`."""
        asked = [line.split(" ", 1)[1] for line in self.log if line.startswith("GET ") and "/resolve/" in line]
        return ["/".join([*path.split("/")[1:3], *path.split("/")[5:]]) for path in asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *args):
        pass

    def answer(self, status: int = 200, body: bytes | dict | list = b"", **headers: str):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **{key.replace("_", "-"): headers[key] for key in headers}}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if "resolve" in parts:
            repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo, revision, name = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", None
        else:
            return self.answer(404, X_Error_Code="EntryNotFound")
        commits = self.server.repos.get(repo, {})
        if not commits:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if self.server.commit(repo, revision) not in commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit, files = self.server.commit(repo, revision), self.server.files(repo, revision)
        if name is not None:
            if name not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=commit)
        if "tree" in parts:
            tree = [{"type": "file", "path": path, "oid": "0", "size": len(files[path])} for path in sorted(files)]
            return self.answer(200, tree)
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self.answer(
            200, {"id": repo, "sha": commit, "private": repo in self.server.private, "tags": [], "siblings": siblings}
        )

    do_HEAD = do_GET

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer()

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            fields = json.loads(body)
            repo = f"{fields.get('organization') or 'tester'}/{fields['name']}"
            known = repo in self.server.repos
            self.server.repos.setdefault(repo, {"0" * 40: {}})
            if not known and (fields.get("private") or fields.get("visibility") == "private"):
                self.server.private.add(repo)
            return self.answer(409 if known else 200, {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "preupload" in parts:
            mode = {True: "lfs", False: "regular"}
            files = [file["path"] for file in json.loads(body)["files"]]
            lfs = {name: mode[name.endswith((".safetensors", ".parquet"))] for name in files}
            listed = [{"path": name, "uploadMode": lfs[name], "shouldIgnore": False, "oid": None} for name in files]
            return self.answer(200, {"files": listed})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/upload/{entry['oid']}"}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "commit" in parts:
            return self.commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines() if line])
        return self.answer(404)

    def commit(self, repo: str, lines: list[dict]):
        with self.server.lock:
            files = dict(self.server.files(repo))
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                elif line["key"] == "deletedFolder":
                    files = {name: files[name] for name in files if not name.startswith(value["path"])}
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = hashlib.sha1(f"{repo} {len(self.server.repos[repo])}".encode()).hexdigest()
            self.server.repos[repo][sha] = files
        url = f"{self.server.url}/{repo}/commit/{sha}"
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})
