"""`uvicorn callboard.asgi:app`: the service from the environment. `callboard serve` sets more: see `server.py`."""

import logging

from callboard.app import create_app
from callboard.server import QueryStringFilter

for _name in ("uvicorn.error", "uvicorn.access"):
    logging.getLogger(_name).addFilter(QueryStringFilter())

app = create_app()
