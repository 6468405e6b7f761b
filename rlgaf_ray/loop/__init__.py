"""The adversarial loop over the ``Roles`` protocol, without Ray."""
