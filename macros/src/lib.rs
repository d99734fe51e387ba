//! The `#[collimate::task]` and `#[collimate::main]` attributes.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, Pat, PathArguments, Result, ReturnType, Type};

/// Makes a function a task.
///
/// The function stays callable as it is. Besides it there is a type of the same
/// name with two functions: `name::spawn(arguments…)`, which returns a
/// `Ref<Output>` at once, and `name::spawn_with(options, arguments…)`.
///
/// | Parameter | What a call may be given | How it travels |
/// |---|---|---|
/// | `&[T]`, `T` plain data | a slice, a vector, an array, an `Array`, refs to these | as it is; over 4 KiB it is read where it lies |
/// | `&str` | `&str`, `String`, a ref to one | as it is |
/// | `T` or `&T` | a `T`, a `Ref<T>`; for `Vec<U>` also a `Vec<Ref<U>>` | plain data as it is, else by serde |
///
/// Types must be `Clone + Send + Sync + 'static`. A function that returns a
/// `Result` has its `Ok` type as output, and its `Err` becomes an error value.
/// `#[task(results = N)]` on a function that returns a tuple of `N` makes
/// `spawn` return a tuple of `N` refs.
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = syn::parse_macro_input!(item as ItemFn);
    let expanded = results(attribute.into()).and_then(|results| expand_task(&function, results));
    expanded.unwrap_or_else(|e| with_error(&function, &e)).into()
}

/// Makes a function without parameters the driver of a job: it runs on rank 0,
/// and the other ranks serve until it returns. Its return value decides the
/// exit status of every rank: `()` is 0, an `i32` is itself, an `Err` is
/// printed and is 1.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = syn::parse_macro_input!(item as ItemFn);
    let expanded = if attribute.is_empty() {
        expand_main(&function)
    } else {
        Err(Error::new(Tokens::from(attribute).span(), "`collimate::main` takes no arguments"))
    };
    expanded.unwrap_or_else(|e| with_error(&function, &e)).into()
}

/// The function as it was, and the error: one complaint instead of many.
fn with_error(function: &ItemFn, error: &Error) -> Tokens {
    let error = error.to_compile_error();
    quote! { #function #error }
}

/// Reads `results = N`.
fn results(attribute: Tokens) -> Result<Option<usize>> {
    if attribute.is_empty() {
        return Ok(None);
    }
    let span = attribute.span();
    let complaint = || Error::new(span, "expected nothing or `results = N` with N from 2 to 12");
    let setting: syn::MetaNameValue = syn::parse2(attribute).map_err(|_| complaint())?;
    let number = match &setting.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(n), .. }) if setting.path.is_ident("results") => {
            n.base10_parse::<usize>().map_err(|_| complaint())?
        }
        _ => return Err(complaint()),
    };
    if (2..=12).contains(&number) { Ok(Some(number)) } else { Err(complaint()) }
}

/// One parameter: its name in the frame and how its type is held.
struct Parameter {
    name: syn::Ident,
    kind: Kind,
}

enum Kind {
    /// `&[T]`
    Slice(Type),
    /// `&str`
    Text,
    /// `T`, or `&T` if `true`
    Value(Type, bool),
}

impl Parameter {
    fn read(argument: &FnArg) -> Result<Parameter> {
        let FnArg::Typed(typed) = argument else {
            return Err(Error::new(argument.span(), "a task is a free function: it takes no `self`"));
        };
        let Pat::Ident(pattern) = &*typed.pat else {
            return Err(Error::new(typed.pat.span(), "a task's parameters have plain names"));
        };
        let kind = match &*typed.ty {
            Type::Reference(r) if r.mutability.is_some() => {
                return Err(Error::new(r.span(), "arguments are immutable: take `&` or a value"));
            }
            Type::Reference(r) => match &*r.elem {
                Type::Slice(slice) => Kind::Slice((*slice.elem).clone()),
                Type::Path(path) if path.path.is_ident("str") => Kind::Text,
                other => Kind::Value(other.clone(), true),
            },
            Type::ImplTrait(t) => return Err(Error::new(t.span(), "a task's types are written out, not `impl`")),
            other => Kind::Value(other.clone(), false),
        };
        Ok(Parameter { name: pattern.ident.clone(), kind })
    }

    fn field_type(&self) -> Tokens {
        match &self.kind {
            Kind::Slice(t) => quote! { __private::Slice<#t> },
            Kind::Text => quote! { __private::Text },
            Kind::Value(t, _) => quote! { __private::Value<#t> },
        }
    }

    fn argument(&self) -> Tokens {
        let name = &self.name;
        match &self.kind {
            Kind::Slice(t) => quote! { #name: impl ::collimate::__private::IntoSlice<#t> },
            Kind::Text => quote! { #name: impl ::collimate::__private::IntoText },
            Kind::Value(t, _) => quote! { #name: impl ::collimate::__private::IntoValue<#t> },
        }
    }

    fn convert(&self) -> Tokens {
        let name = &self.name;
        match &self.kind {
            Kind::Slice(_) => quote! { #name: __private::IntoSlice::into_slice(#name) },
            Kind::Text => quote! { #name: __private::IntoText::into_text(#name) },
            Kind::Value(..) => quote! { #name: __private::IntoValue::into_value(#name) },
        }
    }

    fn pass(&self) -> Tokens {
        let name = &self.name;
        match &self.kind {
            Kind::Slice(_) | Kind::Text | Kind::Value(_, true) => quote! { &#name },
            Kind::Value(_, false) => quote! { #name },
        }
    }

    fn encode(&self) -> Tokens {
        let name = &self.name;
        match &self.kind {
            Kind::Slice(_) | Kind::Text => quote! { call.#name.encode(out)?; },
            Kind::Value(t, _) => {
                let codec = codec(t);
                quote! { call.#name.encode(#codec, out)?; }
            }
        }
    }

    fn decode(&self, index: usize) -> Tokens {
        let name = &self.name;
        let received = quote! { &incoming.arguments[#index] };
        match &self.kind {
            Kind::Slice(t) => quote! { #name: __private::Slice::<#t>::decode(#received)? },
            Kind::Text => quote! { #name: __private::Text::decode(#received)? },
            Kind::Value(t, _) => {
                let codec = codec(t);
                quote! { #name: __private::Value::<#t>::decode(#received, #codec)? }
            }
        }
    }
}

fn codec(t: &Type) -> Tokens {
    quote! { (&&&&&__private::Pick::<#t>::NEW).codec() }
}

fn expand_task(function: &ItemFn, results: Option<usize>) -> Result<Tokens> {
    let signature = &function.sig;
    for (wrong, what) in [
        (signature.asyncness.map(|t| t.span()), "`async`: a task waits with `get`"),
        (matches!(signature.safety, syn::Safety::Unsafe(_)).then(|| signature.safety.span()), "`unsafe`"),
        (signature.variadic.as_ref().map(|t| t.span()), "variadic"),
        (signature.generics.params.first().map(|t| t.span()), "generic: ranks must agree on every task's types"),
    ] {
        if let Some(span) = wrong {
            return Err(Error::new(span, format!("a task cannot be {what}")));
        }
    }
    let parameters = signature.inputs.iter().map(Parameter::read).collect::<Result<Vec<_>>>()?;
    let (visibility, name) = (&function.vis, &signature.ident);
    let text = signature_text(function);
    let count = parameters.len();
    let unit: Type = syn::parse_quote!(());
    let returned = match &signature.output {
        ReturnType::Default => &unit,
        ReturnType::Type(_, t) => &**t,
    };
    let fallible = matches!(returned, Type::Path(p) if p.path.segments.last().is_some_and(|s| {
        s.ident == "Result" && matches!(s.arguments, PathArguments::AngleBracketed(_))
    }));
    let output: Tokens = if fallible {
        quote! { <#returned as __private::Fallible>::Ok }
    } else {
        quote! { #returned }
    };
    let outer_output: Tokens = if fallible {
        quote! { <#returned as ::collimate::__private::Fallible>::Ok }
    } else {
        quote! { #returned }
    };

    let names: Vec<_> = parameters.iter().map(|p| &p.name).collect();
    let fields = parameters.iter().map(Parameter::field_type);
    let arguments: Vec<_> = parameters.iter().map(Parameter::argument).collect();
    let convert: Vec<_> = parameters.iter().map(Parameter::convert).collect();
    let pass = parameters.iter().map(Parameter::pass);
    let encode = parameters.iter().map(Parameter::encode);
    let decode = parameters.iter().enumerate().map(|(i, p)| p.decode(i));
    let called = quote! { #name(#(#pass),*) };
    let value = if fallible {
        quote! {
            match __private::Fallible::into_result(#called) {
                Ok(value) => value,
                Err(error) => return Err((&&&__private::Wrap::new(error)).failure()),
            }
        }
    } else {
        called
    };

    let (returns, finish) = match results {
        None => (quote! { ::collimate::Ref<#outer_output> }, quote! { all }),
        Some(n) => {
            let Type::Tuple(tuple) = result_type(returned, fallible) else {
                return Err(Error::new(returned.span(), format!("`results = {n}` needs a tuple of {n}")));
            };
            if tuple.elems.len() != n {
                return Err(Error::new(returned.span(), format!("`results = {n}` needs a tuple of {n}")));
            }
            let types: Vec<_> = tuple.elems.iter().collect();
            let outputs = (0..n).map(|i| {
                let (index, number) = (syn::Index::from(i), i as u8);
                quote! { __private::project(&all, #number, |all: #output| all.#index) }
            });
            (quote! { (#(::collimate::Ref<#types>,)*) }, quote! { (#(#outputs,)*) })
        }
    };
    let doc = format!("Calls [`fn@{name}`] as a task.");
    let spawn_doc = format!("Makes a task of a call of [`fn@{name}`].");
    let with_doc = format!("Makes a task of a call of [`fn@{name}`], with options.");
    let kind = format_ident!("KIND");

    Ok(quote! {
        #function

        #[doc = #doc]
        #[allow(non_camel_case_types)]
        #visibility struct #name {}

        const _: () = {
            use ::collimate::__private;
            #[allow(unused_imports)]
            use __private::{IntoFailure as _, Picked as _};

            const NAME: &str = concat!(module_path!(), "::", stringify!(#name));

            struct Call {
                #(#names: #fields,)*
                extras: __private::Extras,
            }

            impl __private::Call for Call {
                type Output = #output;

                #[inline(always)]
                fn run(self, out: &mut __private::Stored<#output>) {
                    #[allow(unused_variables)]
                    let Call { #(#names,)* extras } = self;
                    __private::run(NAME, extras, out, |out| {
                        #(let #names = #names.take()?;)*
                        let value = #value;
                        out.fill(value);
                        Ok(())
                    });
                }

                fn kind(&self) -> &'static (dyn ::core::any::Any + Send + Sync) {
                    &#kind
                }
            }

            impl __private::Function for Call {
                #[inline(always)]
                fn waits(&self) -> bool {
                    false #(|| __private::Param::waits(&self.#names))*
                }

                #[allow(unused_variables)]
                fn each_ref(&self, each: &mut dyn FnMut(&dyn __private::Waitable)) {
                    #(__private::Param::each_ref(&self.#names, each);)*
                }

                fn extras(&mut self) -> &mut __private::Extras {
                    &mut self.extras
                }

                fn codec() -> __private::Codec<#output> {
                    (&&&&&__private::Pick::<#output>::NEW).codec()
                }
            }

            fn encode(
                call: &dyn ::core::any::Any,
                out: &mut __private::Outgoing<'_>,
            ) -> ::core::result::Result<(), ::std::boxed::Box<__private::TaskError>> {
                let call: &Call = call.downcast_ref().expect("the kind belongs to the call");
                #(#encode)*
                call.extras.encode(out)
            }

            fn decode(
                incoming: &mut __private::Incoming<'_>,
            ) -> ::core::result::Result<Call, ::std::boxed::Box<__private::TaskError>> {
                let extras = __private::Extras::decode(incoming, #count)?;
                Ok(Call { #(#decode,)* extras })
            }

            #[__private::linkme::distributed_slice(__private::TASKS)]
            #[linkme(crate = __private::linkme)]
            static #kind: __private::TaskType = __private::TaskType {
                name: NAME,
                signature: #text,
                parameters: ::core::option::Option::Some(#count),
                encode,
                demand: |call| {
                    let call: &Call = call.downcast_ref().expect("the kind belongs to the call");
                    call.extras.demand()
                },
                receive: |_, incoming| __private::receive::<Call>(incoming, decode),
                complete: |received, slot| {
                    __private::complete(<Call as __private::Function>::codec(), received, slot);
                },
            };

            impl #name {
                #[doc = #spawn_doc]
                #[inline]
                #[allow(clippy::too_many_arguments, dead_code)]
                pub fn spawn(#(#arguments),*) -> #returns {
                    let all = __private::spawn(move || Call { #(#convert,)* extras: __private::Extras::NONE });
                    #finish
                }

                #[doc = #with_doc]
                #[allow(clippy::too_many_arguments, dead_code)]
                pub fn spawn_with(options: ::collimate::Options, #(#arguments),*) -> #returns {
                    let all = options.spawn(move || Call { #(#convert,)* extras: __private::Extras::NONE });
                    #finish
                }
            }
        };
    })
}

/// `T` of `Result<T, …>`, or the type itself.
fn result_type(returned: &Type, fallible: bool) -> &Type {
    if let (true, Type::Path(path)) = (fallible, returned)
        && let Some(PathArguments::AngleBracketed(list)) = path.path.segments.last().map(|s| &s.arguments)
        && let Some(syn::GenericArgument::Type(t)) = list.args.first()
    {
        return t;
    }
    returned
}

/// Parameter and result types as written, which binaries compare.
fn signature_text(function: &ItemFn) -> String {
    let mut text = String::from("(");
    for (i, argument) in function.sig.inputs.iter().enumerate() {
        if let FnArg::Typed(typed) = argument {
            let t = &typed.ty;
            if i > 0 {
                text.push_str(", ");
            }
            text.push_str(&quote!(#t).to_string().replace(' ', ""));
        }
    }
    text.push(')');
    if let ReturnType::Type(_, t) = &function.sig.output {
        text.push_str(" -> ");
        text.push_str(&quote!(#t).to_string().replace(' ', ""));
    }
    text
}

fn expand_main(function: &ItemFn) -> Result<Tokens> {
    let signature = &function.sig;
    if let Some(argument) = signature.inputs.first() {
        return Err(Error::new(argument.span(), "the driver takes no parameters: read `std::env::args`"));
    }
    if let Some(asyncness) = &signature.asyncness {
        return Err(Error::new(asyncness.span(), "the driver is not `async`: it waits with `get`"));
    }
    let (attributes, visibility, name) = (&function.attrs, &function.vis, &signature.ident);
    let (output, block) = (&signature.output, &function.block);
    Ok(quote! {
        #(#attributes)*
        #visibility fn #name() -> ::std::process::ExitCode {
            fn driver() #output #block
            ::collimate::__private::main(driver)
        }
    })
}
