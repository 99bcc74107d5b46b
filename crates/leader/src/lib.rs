//! Leader election: a Redis lease makes one instance act, a term issued by PostgreSQL makes all others harmless.
