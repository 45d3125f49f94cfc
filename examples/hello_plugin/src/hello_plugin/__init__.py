"""The namespace HELLO: a plain class, and the hook that serves it."""

from callboard import Service, hookimpl


class Greeter:
    """Greets people. It knows nothing of Callboard."""

    def greet(self, name: str, times: int = 1) -> str:
        """`hello {name}`, `times` times."""
        return ", ".join([f"hello {name}"] * times)


@hookimpl
def register_services() -> list[type[Service]]:
    return [Service.wrap("HELLO", Greeter, effects={"greet": "read"})]
