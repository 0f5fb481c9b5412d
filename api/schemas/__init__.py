"""What goes over the wire.  Requests refuse unknown fields; responses have no defaults: every key is always there."""
