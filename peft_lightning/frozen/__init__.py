"""The frozen layers below the adapter: run without gradients, or once for all epochs."""
