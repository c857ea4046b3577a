"""A registry on loopback that cannot be trusted: images `lie` have other bytes than their digest says, of images `stall`
the layer begins and never ends. Prints its port."""
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading


def layer():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("data")
        entry.size = 1 << 16
        tar.addfile(entry, io.BytesIO(bytes(1 << 16)))
    return gzip.compress(file.getvalue(), mtime=0)


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


LAYER = layer()
CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {
    "type": "layers", "diff_ids": [digest(gzip.decompress(LAYER))]}}).encode()
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": {
    "mediaType": "application/vnd.oci.image.config.v1+json", "size": len(CONFIG), "digest": digest(CONFIG)}, "layers": [{
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": len(LAYER), "digest": digest(LAYER)}]}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        kind, content = "application/octet-stream", b""
        if "/manifests/" in self.path:
            kind, content = MANIFEST_TYPE, MANIFEST
        elif self.path.endswith(digest(CONFIG)):
            content = CONFIG
        elif self.path.endswith(digest(LAYER)):
            content = LAYER
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if "/manifests/" in self.path:
            self.send_header("Docker-Content-Digest", digest(content))
        self.end_headers()
        if self.command == "HEAD":
            return
        if content is LAYER and "/stall/" in self.path:
            self.wfile.write(content[:10])
            self.wfile.flush()
            threading.Event().wait()
        if content is LAYER and "/lie/" in self.path:
            content = bytes(len(content))
        self.wfile.write(content)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
