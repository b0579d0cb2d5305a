"""An example of a planish plugin: a pass, a backend and a device."""
