"""Webhook endpoints and what was sent to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from api.schemas.common import Request, Response, broken, seconds
from shared.webhook_records import Delivery, WebhookEndpoint
from shared.webhooks import DEFAULT_EVENTS, EVENT_TYPES


def event_types(types: list[str]) -> list[str]:
    if not set(types) <= set(EVENT_TYPES):
        raise broken("invalid_value", f"must name event types: {', '.join(EVENT_TYPES)}")
    return list(dict.fromkeys(types))


EventTypes = Annotated[
    list[str],
    AfterValidator(event_types),
    Field(min_length=1, max_length=len(EVENT_TYPES), description="see GET /v1/webhook_event_types"),
]
EndpointUrl = Annotated[str, Field(min_length=1, max_length=2_048, examples=["https://ci.example.com/hooks/distill"])]
EndpointText = Annotated[str, Field(min_length=1, max_length=500)]


class WebhookEndpointCreate(Request):
    """Where you are told of what happens to any of your jobs."""

    url: EndpointUrl
    events: EventTypes = Field(list(DEFAULT_EVENTS))
    description: EndpointText | None = None
    enabled: bool = True


class WebhookEndpointChange(Request):
    """What is left out stays as it is; null does too, except for `description`, which it removes."""

    url: EndpointUrl | None = None
    events: EventTypes | None = None
    description: EndpointText | None = None
    enabled: bool | None = None

    def changed(self) -> dict[str, Any]:
        given = self.model_dump(exclude_unset=True)
        return {name: value for name, value in given.items() if value is not None or name == "description"}


class WebhookEndpointOut(Response):
    """disabled_reason: `gone` when its receiver has answered 410.  previous_secret_until: so long the secret before the
    last rotation signs as well; one from before that, until 24 hours after its own."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    events: list[str]
    description: str | None
    enabled: bool
    disabled_reason: str | None
    previous_secret_until: int | None
    created_at: int

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_endpoint_fields(endpoint))


class NewWebhookEndpointOut(WebhookEndpointOut):
    """secret: verifies what the endpoint is sent; shown this once."""

    secret: str

    @classmethod
    def made(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_endpoint_fields(endpoint), secret=endpoint.secret)


def _endpoint_fields(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "events": endpoint.events,
        "description": endpoint.description,
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        "previous_secret_until": seconds(endpoint.retired_secrets[0].until_ms if endpoint.retired_secrets else None),
        "created_at": endpoint.created_at_ms // 1000,
    }


class DeliveryAttemptOut(Response):
    """status: of the receiver's answer; null when none came, and then `error` says why."""

    at: int
    status: int | None
    duration_seconds: float
    error: str | None


class WebhookDeliveryOut(Response):
    """One event on its way to one receiver.  event_id: what it carries as `webhook-id`, at every attempt."""

    id: str
    object: Literal["webhook_delivery"]
    endpoint_id: str | None
    job_id: str | None
    event_id: str
    event_type: str
    status: str
    attempts: list[DeliveryAttemptOut]
    created_at: int

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        return cls(
            id=delivery.id,
            object="webhook_delivery",
            endpoint_id=delivery.endpoint_id,
            job_id=delivery.job_id,
            event_id=delivery.event_id,
            event_type=delivery.event_type,
            status=delivery.status,
            attempts=[
                DeliveryAttemptOut(
                    at=attempt.at_ms // 1000,
                    status=attempt.status,
                    duration_seconds=attempt.duration_ms / 1000,
                    error=attempt.error,
                )
                for attempt in delivery.attempts
            ],
            created_at=delivery.created_at_ms // 1000,
        )


class WebhookEventType(Response):
    id: str
    object: Literal["webhook_event_type"]
    description: str
    example: dict[str, Any]
