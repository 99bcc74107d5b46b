//! voiceai-scaler: keeps the fleets of Voice and API servers at the right size.
