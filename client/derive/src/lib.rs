//! `#[derive(Event)]` of highwater-client, which re-exports it; use it from there.
//!
//! Owns: reading the attribute, and errors that point at what is wrong. Never: what an event is.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, LitInt, LitStr, Result};

/// See `highwater_client::event`.
#[proc_macro_derive(Event, attributes(event))]
pub fn derive_event(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// What `#[event(...)]` says.
#[derive(Default)]
struct Options {
    name: Option<LitStr>,
    version: Option<LitInt>,
    key: Option<LitStr>,
    format: Option<LitStr>,
}

impl Options {
    fn read(input: &DeriveInput) -> Result<Self> {
        let mut options = Self::default();
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("event")) {
            attribute.parse_nested_meta(|meta| options.take(&meta))?;
        }
        Ok(options)
    }

    fn take(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        if meta.path.is_ident("name") {
            once(&mut self.name, meta)
        } else if meta.path.is_ident("version") {
            once(&mut self.version, meta)
        } else if meta.path.is_ident("key") {
            once(&mut self.key, meta)
        } else if meta.path.is_ident("format") {
            once(&mut self.format, meta)
        } else {
            Err(meta.error("unknown option: there are name, version, key and format"))
        }
    }
}

fn once<T: syn::parse::Parse>(option: &mut Option<T>, meta: &ParseNestedMeta<'_>) -> Result<()> {
    if option.is_some() {
        return Err(meta.error("said twice"));
    }
    *option = Some(meta.value()?.parse()?);
    Ok(())
}

fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let options = Options::read(input)?;
    let Some(name) = &options.name else {
        let text = "an event needs a name: #[event(name = \"order.placed\", key = \"order_id\")]";
        return Err(Error::new(input.ident.span(), text));
    };
    check_name(name)?;
    let version = match &options.version {
        Some(version) => match version.base10_parse::<u32>() {
            Ok(0) | Err(_) => {
                return Err(Error::new(version.span(), "a version is a number from 1 on"));
            }
            Ok(number) => number,
        },
        None => 1,
    };
    let format = match options.format.as_ref().map(|format| (format.value(), format.span())) {
        None => quote!(Json),
        Some((format, _)) if format == "json" => quote!(Json),
        Some((format, _)) if format == "protobuf" => quote!(Protobuf),
        Some((_, span)) => return Err(Error::new(span, "there are \"json\" and \"protobuf\"")),
    };
    let key = match &options.key {
        Some(key) => key_of(input, key)?,
        None => quote!(::core::option::Option::None),
    };
    let ident = &input.ident;
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #impl_generics ::highwater_client::event::Event for #ident #type_generics #where_clause {
            const NAME: &'static str = #name;
            const VERSION: u32 = #version;
            type Format = ::highwater_client::event::#format;

            fn key(&self) -> ::core::option::Option<::highwater_client::event::Key> {
                #key
            }
        }
    })
}

/// Names end up in headers, in other services' code and in people's mouths.
fn check_name(name: &LitStr) -> Result<()> {
    let text = name.value();
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let parts_are_fine = text.split('.').all(|part| !part.is_empty() && part.chars().all(is_fine));
    if parts_are_fine {
        return Ok(());
    }
    let text = "a name is words of a-z, 0-9, - and _ with dots between them: \"order.placed\"";
    Err(Error::new(name.span(), text))
}

fn key_of(input: &DeriveInput, key: &LitStr) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        let text = "a key is a field of a struct; for this type, write the implementation of Event";
        return Err(Error::new(key.span(), text));
    };
    let wanted = key.value();
    let name_of = |index: usize, field: &syn::Field| match &field.ident {
        Some(ident) => ident.to_string(),
        None => index.to_string(),
    };
    let found = data.fields.iter().enumerate().find(|(n, field)| name_of(*n, field) == wanted);
    let Some((index, field)) = found else {
        let names: Vec<String> =
            data.fields.iter().enumerate().map(|(n, field)| name_of(n, field)).collect();
        let text = match &data.fields {
            Fields::Unit => format!("no field '{wanted}': there are none"),
            _ => format!("no field '{wanted}': there are {}", names.join(", ")),
        };
        return Err(Error::new(key.span(), text));
    };
    let member: TokenStream = match &field.ident {
        Some(ident) => quote!(#ident),
        None => {
            let index =
                syn::Index { index: u32::try_from(index).unwrap_or(0), span: Span::call_site() };
            quote!(#index)
        }
    };
    // Spanned, so that a field without a text is what the compiler points at.
    Ok(quote_spanned! { field.ty.span() =>
        ::core::option::Option::Some(::std::string::ToString::to_string(&self.#member).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a struct with this attribute; a test of the compiler's own output would compile all of this workspace again.
    fn said_of(attribute: &str) -> String {
        let text = format!("{attribute} struct Placed {{ order_id: String, amount: u64 }}");
        expand(&syn::parse_str(&text).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        let cases = [
            ("", "an event needs a name: #[event(name = \"order.placed\", key = \"order_id\")]"),
            (
                r#"#[event(name = "Order Placed")]"#,
                "a name is words of a-z, 0-9, - and _ with dots between them: \"order.placed\"",
            ),
            (r#"#[event(name = "order.placed", version = 0)]"#, "a version is a number from 1 on"),
            (
                r#"#[event(name = "order.placed", format = "avro")]"#,
                "there are \"json\" and \"protobuf\"",
            ),
            (
                r#"#[event(name = "order.placed", key = "id")]"#,
                "no field 'id': there are order_id, amount",
            ),
            (r#"#[event(name = "order.placed", name = "order.paid")]"#, "said twice"),
            (
                r#"#[event(name = "order.placed", topic = "orders")]"#,
                "unknown option: there are name, version, key and format",
            ),
        ];
        for (attribute, expected) in cases {
            assert_eq!(said_of(attribute), expected, "{attribute}");
        }
    }
}
