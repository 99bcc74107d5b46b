//! The one door to Redis: connections, scripts, function libraries and the rules for failover.
