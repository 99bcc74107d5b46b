//! Throwaway servers, databases and faults for tests.
