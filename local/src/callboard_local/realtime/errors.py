"""The errors a request can end with. The texts follow Google's, so that they can be searched for."""

from typing import ClassVar


class RealtimeError(Exception):
    """A refused request: `status` is its HTTP status, the message the `error` of its body."""

    status: ClassVar[int] = 500


class BadRequestError(RealtimeError):
    """The request makes no sense, whatever the data."""

    status = 400


class NotFoundError(RealtimeError):
    """Nothing is served at this URL."""

    status = 404


class MethodNotAllowedError(RealtimeError):
    """The method means nothing here."""

    status = 405


INVALID_JSON = "Invalid data; couldn't parse JSON object, array, or value."
INVALID_PATCH = "Invalid data; couldn't parse JSON object. Are you sending a JSON object with valid key names?"
INVALID_KEY = "Invalid data; couldn't parse key. Key value can't be empty or contain $ # [ ] / or ."
INVALID_PATH = "Invalid path: Invalid token in path"
NO_DATA = "Error: No data supplied."
TOO_LARGE = "Data to write exceeds the maximum size that can be modified with a single request."
