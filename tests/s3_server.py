"""``python -m tests.s3_server``: moto's S3 server in a process of its own, on a free port."""

from __future__ import annotations

import logging

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import make_server

if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()
