"""What an analysis of YAML documents tells, short enough for tables."""

from __future__ import annotations

from mesh.resources.loader import load_mesh_config
from mesh.resources.mesh_config import MeshConfig
from remora.policy_tools.advice.everything import Findings, analyze_all
from remora.policy_tools.advice.message import Code
from remora.policy_tools.analyze import read_material
from remora.policy_tools.sources import Text, Texts
from tests.remora.policy_tools.shop import text


def findings(*documents: str, mesh: str = "", skip: bool = False) -> Findings:
    """Analyse documents."""
    config, problems = load_mesh_config(mesh)
    assert problems == ()
    texts = Texts(
        texts=(Text(file="f.yaml", content=text(*documents)),), config=config or MeshConfig()
    )
    return analyze_all(read_material(texts, skip_unknown_kinds=skip))


def told(*documents: str, mesh: str = "") -> list[tuple[str, str]]:
    """Return code and resource of every message.

    But for those that many tests would have: on the mesh's own mode, and what is not enforced yet.
    """
    return [
        (one.code, one.resource)
        for one in findings(*documents, mesh=mesh).advice
        if one.resource != "mesh istio-system" and one.code != Code.NOT_ENFORCED.value[0]
    ]


def peers(name: str, spec: str, namespace: str = "shop", age: int = 0) -> str:
    """Write a PeerAuthentication."""
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: {name}
  namespace: {namespace}
  creationTimestamp: 2024-01-01T00:00:0{age}Z
spec: {spec}
"""


def authz(rules: str, action: str = "ALLOW", namespace: str = "shop", selector: str = "") -> str:
    """Write an AuthorizationPolicy named p."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{{selector}}}}}
  action: {action}
  rules: {rules}
""".replace("  selector: {matchLabels: {}}\n", "")


def rule(spec: str, name: str = "d", namespace: str = "shop") -> str:
    """Write a DestinationRule."""
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"""


def request_authn(selector: str) -> str:
    """Write a RequestAuthentication named jwt."""
    return f"""
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt, namespace: shop}}
spec: {{selector: {{matchLabels: {{{selector}}}}}, jwtRules: [{{issuer: i}}]}}
"""
