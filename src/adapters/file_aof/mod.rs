//! file_aof
