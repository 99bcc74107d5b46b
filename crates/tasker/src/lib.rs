//! voiceai-tasker: the platform's background work on a Redis job queue.
