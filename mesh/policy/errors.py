"""What a policy module refuses to work with."""

from __future__ import annotations

from enum import Enum

from mesh.errors import RemoraError


class PolicyError(RemoraError):
    """Base of the errors of policy decisions. A denial is an answer, not an error."""

    reason = "policy_error"


class PathRefused(PolicyError):
    """A request path cannot be normalised; `status` is the HTTP status that answers it."""

    reason = "path_refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Fault(Enum):
    """What is wrong with a token, in Envoy's words."""

    BAD_FORM = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
    HEADER_NOT_BASE64 = "Jwt header is an invalid Base64url encoded"
    HEADER_NOT_JSON = "Jwt header is an invalid JSON"
    NO_ALGORITHM = "Jwt header [alg] field is required and must be a string"
    UNSUPPORTED_ALGORITHM = "Jwt header [alg] is not supported"
    BAD_KID = "Jwt header [kid] field is not a string"
    PAYLOAD_NOT_BASE64 = "Jwt payload is an invalid Base64url encoded"
    PAYLOAD_NOT_JSON = "Jwt payload is an invalid JSON"
    BAD_ISSUER = "Jwt payload [iss] field is not a string"
    BAD_SUBJECT = "Jwt payload [sub] field is not a string"
    ISSUED_AT_NO_NUMBER = "Jwt payload [iat] field is not an integer"
    BAD_ISSUED_AT = "Jwt payload [iat] field is not a positive 64 bit integer"
    NOT_BEFORE_NO_NUMBER = "Jwt payload [nbf] field is not an integer"
    BAD_NOT_BEFORE = "Jwt payload [nbf] field is not a positive 64 bit integer"
    EXPIRY_NO_NUMBER = "Jwt payload [exp] field is not an integer"
    BAD_EXPIRY = "Jwt payload [exp] field is not a positive 64 bit integer"
    BAD_ID = "Jwt payload [jti] field is not a string"
    BAD_AUDIENCE = "Jwt payload [aud] field is not a string or string list"
    SIGNATURE_NOT_BASE64 = "Jwt signature is an invalid Base64url encoded"
    UNKNOWN_ISSUER = "Jwt issuer is not configured"
    EXPIRED = "Jwt is expired"
    NOT_YET_VALID = "Jwt not yet valid"
    AUDIENCE_REFUSED = "Audiences in Jwt are not allowed"
    NO_KEY = "Jwks doesn't have key to match kid or alg from Jwt"
    BAD_SIGNATURE = "Jwt verification fails"


class TokenRefused(PolicyError):
    """A request's token is no good; the message is the sentence that Envoy answers with."""

    reason = "token_refused"

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault
