"""Where Firebase is and who we are there."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from callboard.settings import Help, Secret, variable


class FirebaseSettings(Struct, frozen=True, kw_only=True):
    """The Google conventions; none set means: no Firebase."""

    project_id: Annotated[str, Help("Google Cloud project; the service account's own when empty")] = variable(
        "GOOGLE_PROJECT_ID", default=""
    )
    admin_json: Annotated[Secret | None, Help("the service account: the path of its JSON file, or the JSON itself")] = (
        variable("FIREBASE_ADMIN_JSON")
    )
    application_credentials: Annotated[
        str, Help("path of Google's application default credentials, used when FIREBASE_ADMIN_JSON is not set")
    ] = variable("GOOGLE_APPLICATION_CREDENTIALS", default="")
    emulator_host: Annotated[str, Help("host:port of a Firestore emulator, used without credentials")] = variable(
        "FIRESTORE_EMULATOR_HOST", default=""
    )
    targets_per_stream: Annotated[
        int, Meta(ge=1), Help("watches that share one Listen stream, down to one")
    ] = variable("FIRESTORE_TARGETS_PER_STREAM", default=500)  # fmt: skip

    realtime_url: Annotated[str, Help("address of the Realtime Database; with an emulator, its namespace alone")] = (
        variable("FIREBASE_REALTIME_DB_URL", default="")
    )
    realtime_emulator_host: Annotated[
        str, Help("host:port of a Realtime Database emulator, used without credentials")
    ] = variable("FIREBASE_DATABASE_EMULATOR_HOST", default="")  # fmt: skip

    check_revoked: Annotated[
        bool, Help("ask Google, at a log-in and each heartbeat, whether an ID token was revoked or its user disabled")
    ] = variable("FIREBASE_CHECK_REVOKED", default=False)  # fmt: skip
    clock_skew_s: Annotated[int, Help("seconds by which Google's clock may differ from ours", ge=0, le=60)] = variable(
        "FIREBASE_CLOCK_SKEW_S", default=5
    )
    auth_emulator_host: Annotated[str, Help("host:port of an Auth emulator; ID tokens then need no signature")] = (
        variable("FIREBASE_AUTH_EMULATOR_HOST", default="")
    )

    @property
    def configured(self) -> bool:
        """Whether there is any Firestore to talk to."""
        return bool(self.project_id or self.admin_json or self.application_credentials or self.emulator_host)

    @property
    def realtime_configured(self) -> bool:
        """Whether there is any Realtime Database to talk to."""
        return bool(self.realtime_url or self.realtime_emulator_host)

    @property
    def id_tokens_configured(self) -> bool:
        """Whether there is any project whose users' ID tokens could be checked."""
        return bool(self.project_id or self.admin_json or self.application_credentials)
