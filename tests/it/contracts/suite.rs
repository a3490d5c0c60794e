//! What turns the facts of a suite into tests, one per fact and adapter.
//!
//! A fact that is not listed is dead code, which the compiler says; so the list cannot fall behind.

/// Writes a module per adapter with a test per fact: `store::dash::a_fact`. The expression after
/// `=>` is what each fact is called with. Facts are `async` where the macro is told so.
macro_rules! contract {
    (over { $($adapter:ident: #[$test:meta] => $subject:expr;)+ } holds $facts:tt) => {
        $(mod $adapter {
            use super::*;
            contract!(@plain [#[$test]] $subject, $facts);
        })+
    };
    (async over { $($adapter:ident: #[$test:meta] => $subject:expr;)+ } holds $facts:tt) => {
        $(mod $adapter {
            use super::*;
            contract!(@async [#[$test]] $subject, $facts);
        })+
    };
    (@plain $test:tt $subject:expr, { $($fact:ident),+ $(,)? }) => {
        $(contract!(@test $test fn $fact() { super::$fact($subject) });)+
    };
    (@async $test:tt $subject:expr, { $($fact:ident),+ $(,)? }) => {
        $(contract!(@test $test async fn $fact() { super::$fact($subject).await });)+
    };
    (@test [$(#[$test:meta])+] $($function:tt)+) => {
        $(#[$test])+
        $($function)+
    };
}

pub(crate) use contract;
