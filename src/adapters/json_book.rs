//! json_book
