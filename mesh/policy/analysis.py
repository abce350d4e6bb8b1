"""What `istioctl analyze` would say of resources, as far as it touches security.

The codes, names and levels are Istio's, and so is what is not said: nothing of PERMISSIVE, of
several policies for one namespace, or of PeerAuthentication against DestinationRule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from mesh.policy.inventory import Inventory, Pod
from mesh.policy.selection import selects
from mesh.resources.networking import ClientTls, DestinationRule, TlsMode
from mesh.resources.problem import Problem
from mesh.resources.security import AuthorizationPolicy, RequestAuthentication, Source
from mesh.resources.values import Resource

GATEWAY_NAME_LABEL = "gateway.networking.k8s.io/gateway-name"
"""The label of a pod that is a gateway of the Kubernetes Gateway API."""


class Kind(Enum):
    """The messages there are: code, Istio's name, level."""

    NOT_FOUND = ("IST0101", "ReferencedResourceNotFound", "Error")
    INVALID = ("IST0106", "SchemaValidationError", "Error")
    NO_WORKLOADS = ("IST0127", "NoMatchingWorkloadsFound", "Warning")
    UNVERIFIED = ("IST0128", "NoServerCertificateVerificationDestinationLevel", "Warning")
    UNVERIFIED_PORT = ("IST0129", "NoServerCertificateVerificationPortLevel", "Warning")
    DOUBTFUL = ("IST0133", "SchemaWarning", "Warning")
    CLAIMS_UNCHECKED = ("IST0149", "JwtClaimBasedRoutingWithoutRequestAuthN", "Error")
    INEFFECTIVE_SELECTOR = ("IST0166", "IneffectiveSelector", "Warning")
    KEYS_FROM_ANYWHERE = ("IST0175", "JwksUriFetchUnrestricted", "Warning")

    @property
    def code(self) -> str:
        """The message's code, such as IST0101."""
        return self.value[0]

    @property
    def istio_name(self) -> str:
        """The message's name in Istio."""
        return self.value[1]

    @property
    def level(self) -> str:
        """Error or Warning."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Message:
    """One message about one resource, named `Kind NAMESPACE/NAME`."""

    kind: Kind
    resource: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind.level} [{self.kind.code}] ({self.resource}) {self.text}"


def analyze(inventory: Inventory) -> tuple[Message, ...]:
    """Return every message about the resources of an inventory."""
    found: list[Message] = []
    found.extend(_from_problems(Kind.INVALID, inventory.problems))
    found.extend(_from_problems(Kind.DOUBTFUL, inventory.warnings))
    for resource in inventory.resources:
        match resource:
            case AuthorizationPolicy():
                found.extend(_workloads(resource, inventory))
                found.extend(_namespaces(resource, inventory))
                found.extend(_gateway_pods(resource, inventory))
            case RequestAuthentication():
                found.extend(_gateway_pods(resource, inventory))
            case DestinationRule():
                found.extend(_verification(resource))
            case _:
                pass
    found.extend(_claim_routes(inventory))
    found.extend(_key_sets(inventory))
    return tuple(found)


def _name(resource: Resource) -> str:
    return f"{type(resource).__name__} {resource.key}"


def _from_problems(kind: Kind, problems: Iterable[Problem]) -> Iterator[Message]:
    for problem in problems:
        place = f"{problem.field}: " if problem.field else ""
        yield Message(kind, problem.resource, place + problem.message)


def _reach(namespace: str, inventory: Inventory) -> Iterator[Pod]:
    """Yield the pods a policy may select: those of its namespace, or all if that is the root."""
    for pod in inventory.pods:
        if namespace in {pod.namespace, inventory.config.root_namespace}:
            yield pod


def _workloads(policy: AuthorizationPolicy, inventory: Inventory) -> Iterator[Message]:
    namespace, selector = policy.metadata.namespace, policy.spec.selector
    if selector is None and namespace == inventory.config.root_namespace:
        return
    pods = (pod for pod in _reach(namespace, inventory) if pod.in_mesh)
    if not any(selects(selector, pod.labels) for pod in pods):
        yield Message(Kind.NO_WORKLOADS, _name(policy), "no workload in the mesh is selected")


def _namespaces(policy: AuthorizationPolicy, inventory: Inventory) -> Iterator[Message]:
    for rule in policy.spec.rules:
        for entry in rule.from_:
            for pattern in _named(entry.source):
                if not any(_matches(pattern, known) for known in inventory.namespaces):
                    text = f"there is no namespace {pattern!r}"
                    yield Message(Kind.NOT_FOUND, _name(policy), text)


def _named(source: Source) -> tuple[str, ...]:
    return (*source.namespaces, *source.not_namespaces)


def _matches(pattern: str, namespace: str) -> bool:
    if pattern.startswith("*"):
        return namespace.endswith(pattern[1:])
    if pattern.endswith("*"):
        return namespace.startswith(pattern[:-1])
    return namespace.casefold() == pattern.casefold()


def _gateway_pods(
    policy: AuthorizationPolicy | RequestAuthentication, inventory: Inventory
) -> Iterator[Message]:
    """Gateways of the Gateway API are reached by targetRefs; a selector does nothing there.

    Istio looks only at pods of the policy's own namespace, also if that is the root.
    """
    spec = policy.spec
    if spec.selector is None or spec.target_ref is not None or spec.target_refs:
        return
    for pod in inventory.pods:
        gateway = pod.labels.get(GATEWAY_NAME_LABEL)
        if gateway is None or pod.namespace != policy.metadata.namespace:
            continue
        if selects(spec.selector, pod.labels):
            text = f"the selector does not reach the gateway {gateway}: use targetRefs"
            yield Message(Kind.INEFFECTIVE_SELECTOR, _name(policy), text)


def _verification(rule: DestinationRule) -> Iterator[Message]:
    policy = rule.spec.traffic_policy
    if policy is None:
        return
    if _unverified(policy.tls, rule):
        text = f"connections to {rule.spec.host} do not verify the server: set caCertificates"
        yield Message(Kind.UNVERIFIED, _name(rule), text)
    for settings in policy.port_level_settings or ():
        if _unverified(settings.tls, rule):
            port = settings.port.number if settings.port else 0
            text = f"connections to port {port} of {rule.spec.host} do not verify the server"
            yield Message(Kind.UNVERIFIED_PORT, _name(rule), text)


def _unverified(tls: ClientTls | None, rule: DestinationRule) -> bool:
    """Istio: a credential brings certificates to verify with only for selected workloads."""
    return (
        tls is not None
        and tls.mode in {TlsMode.SIMPLE, TlsMode.MUTUAL}
        and not tls.ca_certificates
        and not (tls.credential_name and rule.spec.workload_selector is not None)
    )


def _key_sets(inventory: Inventory) -> Iterator[Message]:
    """Report control planes that fetch key sets from wherever a policy tells them to."""
    if any(isinstance(one, RequestAuthentication) for one in inventory.resources):
        for deployment in inventory.unrestricted:
            text = "key sets are fetched from any address: set BLOCKED_CIDRS_IN_JWKS_URIS"
            yield Message(Kind.KEYS_FROM_ANYWHERE, f"Deployment {deployment}", text)


def _claim_routes(inventory: Inventory) -> Iterator[Message]:
    """Report routes by token claims through gateway pods where nobody verifies tokens."""
    checks = [one for one in inventory.resources if isinstance(one, RequestAuthentication)]
    for route in inventory.claim_routes:
        for gateway in route.gateways:
            selector = inventory.gateways.get(gateway)
            if selector is None:
                continue
            for pod in inventory.pods:
                if all(pod.labels.get(key) == value for key, value in selector.items()) and not (
                    any(_covers(check, pod, inventory) for check in checks)
                ):
                    text = f"routes by {route.header}, but pod {pod.name} verifies no tokens"
                    yield Message(
                        Kind.CLAIMS_UNCHECKED,
                        f"VirtualService {route.namespace}/{route.name}",
                        text,
                    )


def _covers(check: RequestAuthentication, pod: Pod, inventory: Inventory) -> bool:
    namespaces = {pod.namespace, inventory.config.root_namespace}
    return check.metadata.namespace in namespaces and selects(check.spec.selector, pod.labels)
