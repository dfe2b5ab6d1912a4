"""Nothing of split.pyx is called from other compiled modules: the lane gets it as a function pointer (`install`)."""
