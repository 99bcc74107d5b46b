//! The PostgreSQL pool, migrations, leader terms, fenced statements and the audit trail.
