"""How resources travel from the control plane to proxies: Istio's MCP over incremental xDS."""
