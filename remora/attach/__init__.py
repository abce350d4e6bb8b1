"""`remora run`: an app with a sidecar attached, for as long as the app lives."""
