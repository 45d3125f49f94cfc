"""`uvicorn callboard.asgi:app`: the service from the environment. `callboard serve` sets more: see its help."""

from callboard.app import create_app

app = create_app()
