from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # the first call pays for imports, on a shared machine
settings.load_profile("no deadline")
