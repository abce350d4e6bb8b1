"""The node agent: keys, CSRs and rotation; serves secrets to proxies over SDS."""
