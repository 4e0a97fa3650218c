"""How clips get in: accepted, decoded, embedded, stored."""
