"""Errors as the provider words them: one envelope with four keys, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """Answered as `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.envelope: dict[str, Any] = {
            "error": {"message": message, "type": type, "param": param, "code": code},
        }


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def missing(param: str) -> ApiError:
    return invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, wanted: str) -> ApiError:
    return invalid(f"Invalid type for '{param}': expected {wanted}.", param=param, code="invalid_type")


def wrong_value(param: str, wanted: str) -> ApiError:
    return invalid(f"Invalid value for '{param}': {wanted}.", param=param, code="invalid_value")


def not_found(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(404, message, param=param, code=code)


def model_not_found(model: str) -> ApiError:
    return not_found(f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found")
