//! Intake, claims, attempts and what follows from them, on a real PostgreSQL and a scripted provider.

mod consequences;
mod intake;
mod operate;
mod sending;
mod stream;
mod support;
