"""The errors a Firestore call can end with. The texts follow Google's, so that they can be searched for."""

from typing import ClassVar

import grpc


class FirestoreError(Exception):
    """A refused call: `code` is its gRPC status, the message its details."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class InvalidArgumentError(FirestoreError):
    """The request makes no sense, whatever the data."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(FirestoreError):
    """The document has to exist and does not."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(FirestoreError):
    """The document must not exist and does."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(FirestoreError):
    """The data's state does not permit it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(FirestoreError):
    """Another commit changed what this transaction read: run it again."""

    code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(FirestoreError):
    """A limit of this server has been reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnimplementedError(FirestoreError):
    """Google's service can do this; this server cannot."""

    code = grpc.StatusCode.UNIMPLEMENTED
