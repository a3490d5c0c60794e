//! Refusals: the one place that says which error is which HTTP status and code.

use std::borrow::Cow;

use axum::http::StatusCode;

use crate::domain::CannotForget;
use crate::ports::{ClientError, ForgetError};

/// The `code` of an error body. The order is that of the counters in `metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    BadRequest,
    Vetoed,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    NotReady,
    Overloaded,
    ShuttingDown,
    DurabilityLag,
    DiskFull,
    MemoryFull,
    LogFailed,
    Unauthorized,
    Forbidden,
}

impl Code {
    pub(super) const ALL: [Self; 17] = [
        Self::BadRequest,
        Self::Vetoed,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::NotReady,
        Self::Overloaded,
        Self::ShuttingDown,
        Self::DurabilityLag,
        Self::DiskFull,
        Self::MemoryFull,
        Self::LogFailed,
        Self::Unauthorized,
        Self::Forbidden,
    ];

    /// As in the body.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Vetoed => "vetoed",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::DurabilityLag => "durability_lag",
            Self::DiskFull => "disk_full",
            Self::MemoryFull => "memory_full",
            Self::LogFailed => "log_failed",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
        }
    }

    /// The HTTP status.
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Vetoed | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotReady | Self::Overloaded | Self::ShuttingDown | Self::DurabilityLag => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::DiskFull | Self::MemoryFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::LogFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Nothing was done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// There is nothing at a path.
    pub(super) fn nowhere() -> Self {
        let message = "there is nothing at this path; the calls are POST /get, POST /add, \
                       DELETE /remove and GET /nodes";
        Self::new(Code::NotFound, message)
    }

    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, message)
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::NotReady(_) => Code::NotReady,
            ClientError::Overloaded(_) => Code::Overloaded,
            ClientError::ShuttingDown => Code::ShuttingDown,
            ClientError::TooLarge { .. } => Code::TooLarge,
            ClientError::DurabilityLag => Code::DurabilityLag,
            ClientError::DiskFull => Code::DiskFull,
            ClientError::MemoryFull { .. } => Code::MemoryFull,
            ClientError::NoBackups => Code::NotFound,
            ClientError::LogFailed(_) => Code::LogFailed,
            ClientError::Vetoed { .. } => Code::Vetoed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ForgetError> for Refusal {
    fn from(error: ForgetError) -> Self {
        match error {
            ForgetError::Unavailable(error) => error.into(),
            ForgetError::Refused(refused) => {
                let code = match refused {
                    CannotForget::Unknown(_) => Code::NotFound,
                    CannotForget::ThisNode(_) | CannotForget::NotDown(_) => Code::Conflict,
                };
                Self::new(code, refused.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_codes_is_complete_and_in_the_order_of_the_enum() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index);
        }
        assert_eq!(Code::Forbidden as usize + 1, Code::ALL.len());
    }

    #[test]
    fn every_error_of_the_port_has_its_code() {
        let cases = [
            (ClientError::NotReady("joining".into()), 503, "not_ready"),
            (ClientError::Overloaded("the log is slow"), 503, "overloaded"),
            (ClientError::ShuttingDown, 503, "shutting_down"),
            (ClientError::TooLarge { bytes: 2, max_bytes: 1 }, 413, "too_large"),
            (ClientError::DurabilityLag, 503, "durability_lag"),
            (ClientError::DiskFull, 507, "disk_full"),
            (ClientError::NoBackups, 404, "not_found"),
            (ClientError::MemoryFull { max_memory: 1 << 30 }, 507, "memory_full"),
            (ClientError::LogFailed("disk".into()), 500, "log_failed"),
            (ClientError::Vetoed { hook: "audit", reason: "no".into() }, 403, "vetoed"),
        ];
        for (error, status, code) in cases {
            let text = error.to_string();
            let refusal = Refusal::from(error);
            assert_eq!(refusal.code.status().as_u16(), status);
            assert_eq!(refusal.code.as_str(), code);
            assert_eq!(refusal.message, text);
        }
    }
}
