"""Who we are at Google: the credentials that the settings name.

What is here reads files and may ask a metadata server: it runs on a thread.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import firebase_admin
from firebase_admin import auth, credentials, firestore_async
from google.auth.credentials import AnonymousCredentials, Scoped
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import AsyncClient

from callboard.errors import ConfigurationError
from callboard_firebase.realtime.tokens import SCOPES
from callboard_firebase.settings import FirebaseSettings

_EMULATOR_PROJECT = "demo"


def firestore_client(settings: FirebaseSettings) -> tuple[firebase_admin.App, AsyncClient]:
    """A client, and the Firebase app that holds its credentials. ConfigurationError."""
    credential = AnonymousCredentials() if settings.emulator_host else _credential(settings)
    project = settings.project_id or (_EMULATOR_PROJECT if settings.emulator_host else "")
    options = {"projectId": project} if project else {}
    app = firebase_admin.initialize_app(credential, options, name=f"callboard-{secrets.token_hex(8)}")
    try:
        return app, firestore_async.client(app)
    except (GoogleAuthError, ValueError) as error:
        firebase_admin.delete_app(app)
        raise _unusable(error) from error


def auth_client(settings: FirebaseSettings, http_timeout_s: float) -> tuple[firebase_admin.App, auth.Client]:
    """Google's client for ID tokens, and the Firebase app it belongs to. ConfigurationError.

    To check a token takes the project's name alone; to ask whether it was revoked takes credentials.
    """
    needs_credentials = settings.check_revoked or not settings.project_id
    credential = _credential(settings) if needs_credentials else AnonymousCredentials()
    options = {"httpTimeout": http_timeout_s, **({"projectId": settings.project_id} if settings.project_id else {})}
    app = firebase_admin.initialize_app(credential, options, name=f"callboard-{secrets.token_hex(8)}")
    try:
        return app, auth.Client(app)
    except (GoogleAuthError, ValueError) as error:
        firebase_admin.delete_app(app)
        raise _unusable(error) from error


def realtime_credentials(settings: FirebaseSettings) -> Any:
    """Google credentials with the scopes of the Realtime Database, shared with nobody. ConfigurationError."""
    try:
        found = _credential(settings).get_credential()
    except (GoogleAuthError, ValueError) as error:
        raise _unusable(error) from error
    return found.with_scopes(SCOPES) if isinstance(found, Scoped) else found


def _unusable(error: Exception) -> ConfigurationError:
    # Google's texts name variables and files, never what is in them.
    return ConfigurationError(f"Firebase cannot be set up: {error}")


def _credential(settings: FirebaseSettings) -> Any:
    if settings.admin_json is not None:
        return _service_account(settings.admin_json.reveal(), "FIREBASE_ADMIN_JSON")
    path = settings.application_credentials
    if path and path != os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        # Google reads the variable from the process's environment alone; a service account's file needs no Google.
        return _service_account(path, "GOOGLE_APPLICATION_CREDENTIALS")
    return credentials.ApplicationDefault()


def _service_account(text: str, variable: str) -> credentials.Certificate:
    """From a file's path or the JSON itself. Errors name the variable and never its content."""
    try:
        inline = text.lstrip().startswith("{")
        content = json.loads(text if inline else Path(text).read_text(encoding="utf-8"))
        return credentials.Certificate(content)
    except OSError as error:
        raise ConfigurationError(f"{variable}: the file cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, AttributeError):
        raise ConfigurationError(
            f"{variable} is neither the JSON of a service account nor the path of a file with it."
        ) from None
