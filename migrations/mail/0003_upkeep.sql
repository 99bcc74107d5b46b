-- Every row of these is written several times within seconds and then rests for months: room for the new versions beside the old ones,
-- and a vacuum by what has changed rather than by how much is kept.
ALTER TABLE mail.attempts SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000);
ALTER TABLE mail.delivery_recipients SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000);
ALTER TABLE mail.deliveries SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000);
