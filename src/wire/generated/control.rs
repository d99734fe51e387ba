// Generated from schema/control.fbs by `cargo xtask schema`; not to be edited.
pub use root::*;
const _: () = ::planus::check_version_compatibility("planus-1.3.0");
/// The root namespace
///
/// Generated from these locations:
/// * File `schema/control.fbs`
#[no_implicit_prelude]
#[allow(clippy::needless_lifetimes)]
mod root {
    /// The namespace `collimate`
    ///
    /// Generated from these locations:
    /// * File `schema/control.fbs`
    pub mod collimate {
        /// The namespace `collimate.control`
        ///
        /// Generated from these locations:
        /// * File `schema/control.fbs`
        pub mod control {
            ///  The first message on every connection between ranks.
            ///
            /// Generated from these locations:
            /// * Table `Hello` in the file `schema/control.fbs:12`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub struct Hello {
                ///  `wire::SCHEMA_VERSION` of the sender.
                pub schema: u32,
                ///  The sender's rank.
                pub rank: u32,
                ///  Worker threads of the sender.
                pub workers: u32,
                ///  Bytes of the sender's object arena.
                pub store_bytes: u64,
                ///  Hash over the sender's task table: with another hash the table is to be
                ///  read from the control store.
                pub tasks_hash: u64,
                ///  Bytes of the sender's registered region, the arena and what surrounds it.
                pub region_bytes: u64,
                ///  What the sender has for tasks that ask for it, as `gpu=2,licence=1`.
                ///  Not required: a rank of another version must be able to read the rest.
                pub resources: ::core::option::Option<::planus::alloc::string::String>,
            }
            #[allow(clippy::derivable_impls)]
            impl ::core::default::Default for Hello {
                fn default() -> Self {
                    Self {
                        schema: 0,
                        rank: 0,
                        workers: 0,
                        store_bytes: 0,
                        tasks_hash: 0,
                        region_bytes: 0,
                        resources: ::core::default::Default::default(),
                    }
                }
            }
            impl Hello {
                /// Creates a [HelloBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> HelloBuilder<()> {
                    HelloBuilder(())
                }
                #[allow(clippy::too_many_arguments)]
                pub fn create(
                    builder: &mut ::planus::Builder,
                    field_schema: impl ::planus::WriteAsDefault<u32, u32>,
                    field_rank: impl ::planus::WriteAsDefault<u32, u32>,
                    field_workers: impl ::planus::WriteAsDefault<u32, u32>,
                    field_store_bytes: impl ::planus::WriteAsDefault<u64, u64>,
                    field_tasks_hash: impl ::planus::WriteAsDefault<u64, u64>,
                    field_region_bytes: impl ::planus::WriteAsDefault<u64, u64>,
                    field_resources: impl ::planus::WriteAsOptional<
                        ::planus::Offset<::core::primitive::str>,
                    >,
                ) -> ::planus::Offset<Self> {
                    let prepared_schema = field_schema.prepare(builder, &0);
                    let prepared_rank = field_rank.prepare(builder, &0);
                    let prepared_workers = field_workers.prepare(builder, &0);
                    let prepared_store_bytes = field_store_bytes.prepare(builder, &0);
                    let prepared_tasks_hash = field_tasks_hash.prepare(builder, &0);
                    let prepared_region_bytes = field_region_bytes.prepare(builder, &0);
                    let prepared_resources = field_resources.prepare(builder);
                    let mut table_writer: ::planus::table_writer::TableWriter<18> = ::core::default::Default::default();
                    if prepared_store_bytes.is_some() {
                        table_writer.write_entry::<u64>(3);
                    }
                    if prepared_tasks_hash.is_some() {
                        table_writer.write_entry::<u64>(4);
                    }
                    if prepared_region_bytes.is_some() {
                        table_writer.write_entry::<u64>(5);
                    }
                    if prepared_schema.is_some() {
                        table_writer.write_entry::<u32>(0);
                    }
                    if prepared_rank.is_some() {
                        table_writer.write_entry::<u32>(1);
                    }
                    if prepared_workers.is_some() {
                        table_writer.write_entry::<u32>(2);
                    }
                    if prepared_resources.is_some() {
                        table_writer.write_entry::<::planus::Offset<str>>(6);
                    }
                    unsafe {
                        table_writer
                            .finish(
                                builder,
                                |object_writer| {
                                    if let ::core::option::Option::Some(prepared_store_bytes) = prepared_store_bytes {
                                        object_writer.write::<_, _, 8>(&prepared_store_bytes);
                                    }
                                    if let ::core::option::Option::Some(prepared_tasks_hash) = prepared_tasks_hash {
                                        object_writer.write::<_, _, 8>(&prepared_tasks_hash);
                                    }
                                    if let ::core::option::Option::Some(
                                        prepared_region_bytes,
                                    ) = prepared_region_bytes {
                                        object_writer.write::<_, _, 8>(&prepared_region_bytes);
                                    }
                                    if let ::core::option::Option::Some(prepared_schema) = prepared_schema {
                                        object_writer.write::<_, _, 4>(&prepared_schema);
                                    }
                                    if let ::core::option::Option::Some(prepared_rank) = prepared_rank {
                                        object_writer.write::<_, _, 4>(&prepared_rank);
                                    }
                                    if let ::core::option::Option::Some(prepared_workers) = prepared_workers {
                                        object_writer.write::<_, _, 4>(&prepared_workers);
                                    }
                                    if let ::core::option::Option::Some(prepared_resources) = prepared_resources {
                                        object_writer.write::<_, _, 4>(&prepared_resources);
                                    }
                                },
                            );
                    }
                    builder.current_offset()
                }
            }
            impl ::planus::WriteAs<::planus::Offset<Hello>> for Hello {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hello> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl ::planus::WriteAsOptional<::planus::Offset<Hello>> for Hello {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Hello>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl ::planus::WriteAsOffset<Hello> for Hello {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hello> {
                    Hello::create(
                        builder,
                        self.schema,
                        self.rank,
                        self.workers,
                        self.store_bytes,
                        self.tasks_hash,
                        self.region_bytes,
                        &self.resources,
                    )
                }
            }
            /// Builder for serializing an instance of the [Hello] type.
            ///
            /// Can be created using the [Hello::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct HelloBuilder<State>(State);
            impl HelloBuilder<()> {
                /// Setter for the [`schema` field](Hello#structfield.schema).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn schema<T0>(self, value: T0) -> HelloBuilder<(T0,)>
                where
                    T0: ::planus::WriteAsDefault<u32, u32>,
                {
                    HelloBuilder((value,))
                }
                /// Sets the [`schema` field](Hello#structfield.schema) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn schema_as_default(
                    self,
                ) -> HelloBuilder<(::planus::DefaultValue,)> {
                    self.schema(::planus::DefaultValue)
                }
            }
            impl<T0> HelloBuilder<(T0,)> {
                /// Setter for the [`rank` field](Hello#structfield.rank).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn rank<T1>(self, value: T1) -> HelloBuilder<(T0, T1)>
                where
                    T1: ::planus::WriteAsDefault<u32, u32>,
                {
                    let (v0,) = self.0;
                    HelloBuilder((v0, value))
                }
                /// Sets the [`rank` field](Hello#structfield.rank) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn rank_as_default(
                    self,
                ) -> HelloBuilder<(T0, ::planus::DefaultValue)> {
                    self.rank(::planus::DefaultValue)
                }
            }
            impl<T0, T1> HelloBuilder<(T0, T1)> {
                /// Setter for the [`workers` field](Hello#structfield.workers).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn workers<T2>(self, value: T2) -> HelloBuilder<(T0, T1, T2)>
                where
                    T2: ::planus::WriteAsDefault<u32, u32>,
                {
                    let (v0, v1) = self.0;
                    HelloBuilder((v0, v1, value))
                }
                /// Sets the [`workers` field](Hello#structfield.workers) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn workers_as_default(
                    self,
                ) -> HelloBuilder<(T0, T1, ::planus::DefaultValue)> {
                    self.workers(::planus::DefaultValue)
                }
            }
            impl<T0, T1, T2> HelloBuilder<(T0, T1, T2)> {
                /// Setter for the [`store_bytes` field](Hello#structfield.store_bytes).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn store_bytes<T3>(self, value: T3) -> HelloBuilder<(T0, T1, T2, T3)>
                where
                    T3: ::planus::WriteAsDefault<u64, u64>,
                {
                    let (v0, v1, v2) = self.0;
                    HelloBuilder((v0, v1, v2, value))
                }
                /// Sets the [`store_bytes` field](Hello#structfield.store_bytes) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn store_bytes_as_default(
                    self,
                ) -> HelloBuilder<(T0, T1, T2, ::planus::DefaultValue)> {
                    self.store_bytes(::planus::DefaultValue)
                }
            }
            impl<T0, T1, T2, T3> HelloBuilder<(T0, T1, T2, T3)> {
                /// Setter for the [`tasks_hash` field](Hello#structfield.tasks_hash).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn tasks_hash<T4>(
                    self,
                    value: T4,
                ) -> HelloBuilder<(T0, T1, T2, T3, T4)>
                where
                    T4: ::planus::WriteAsDefault<u64, u64>,
                {
                    let (v0, v1, v2, v3) = self.0;
                    HelloBuilder((v0, v1, v2, v3, value))
                }
                /// Sets the [`tasks_hash` field](Hello#structfield.tasks_hash) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn tasks_hash_as_default(
                    self,
                ) -> HelloBuilder<(T0, T1, T2, T3, ::planus::DefaultValue)> {
                    self.tasks_hash(::planus::DefaultValue)
                }
            }
            impl<T0, T1, T2, T3, T4> HelloBuilder<(T0, T1, T2, T3, T4)> {
                /// Setter for the [`region_bytes` field](Hello#structfield.region_bytes).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn region_bytes<T5>(
                    self,
                    value: T5,
                ) -> HelloBuilder<(T0, T1, T2, T3, T4, T5)>
                where
                    T5: ::planus::WriteAsDefault<u64, u64>,
                {
                    let (v0, v1, v2, v3, v4) = self.0;
                    HelloBuilder((v0, v1, v2, v3, v4, value))
                }
                /// Sets the [`region_bytes` field](Hello#structfield.region_bytes) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn region_bytes_as_default(
                    self,
                ) -> HelloBuilder<(T0, T1, T2, T3, T4, ::planus::DefaultValue)> {
                    self.region_bytes(::planus::DefaultValue)
                }
            }
            impl<T0, T1, T2, T3, T4, T5> HelloBuilder<(T0, T1, T2, T3, T4, T5)> {
                /// Setter for the [`resources` field](Hello#structfield.resources).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn resources<T6>(
                    self,
                    value: T6,
                ) -> HelloBuilder<(T0, T1, T2, T3, T4, T5, T6)>
                where
                    T6: ::planus::WriteAsOptional<
                        ::planus::Offset<::core::primitive::str>,
                    >,
                {
                    let (v0, v1, v2, v3, v4, v5) = self.0;
                    HelloBuilder((v0, v1, v2, v3, v4, v5, value))
                }
                /// Sets the [`resources` field](Hello#structfield.resources) to null.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn resources_as_null(
                    self,
                ) -> HelloBuilder<(T0, T1, T2, T3, T4, T5, ())> {
                    self.resources(())
                }
            }
            impl<T0, T1, T2, T3, T4, T5, T6> HelloBuilder<(T0, T1, T2, T3, T4, T5, T6)> {
                /// Finish writing the builder to get an [Offset](::planus::Offset) to a serialized [Hello].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hello>
                where
                    Self: ::planus::WriteAsOffset<Hello>,
                {
                    ::planus::WriteAsOffset::prepare(&self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<u32, u32>,
                T1: ::planus::WriteAsDefault<u32, u32>,
                T2: ::planus::WriteAsDefault<u32, u32>,
                T3: ::planus::WriteAsDefault<u64, u64>,
                T4: ::planus::WriteAsDefault<u64, u64>,
                T5: ::planus::WriteAsDefault<u64, u64>,
                T6: ::planus::WriteAsOptional<::planus::Offset<::core::primitive::str>>,
            > ::planus::WriteAs<::planus::Offset<Hello>>
            for HelloBuilder<(T0, T1, T2, T3, T4, T5, T6)> {
                type Prepared = ::planus::Offset<Hello>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hello> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<u32, u32>,
                T1: ::planus::WriteAsDefault<u32, u32>,
                T2: ::planus::WriteAsDefault<u32, u32>,
                T3: ::planus::WriteAsDefault<u64, u64>,
                T4: ::planus::WriteAsDefault<u64, u64>,
                T5: ::planus::WriteAsDefault<u64, u64>,
                T6: ::planus::WriteAsOptional<::planus::Offset<::core::primitive::str>>,
            > ::planus::WriteAsOptional<::planus::Offset<Hello>>
            for HelloBuilder<(T0, T1, T2, T3, T4, T5, T6)> {
                type Prepared = ::planus::Offset<Hello>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Hello>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<u32, u32>,
                T1: ::planus::WriteAsDefault<u32, u32>,
                T2: ::planus::WriteAsDefault<u32, u32>,
                T3: ::planus::WriteAsDefault<u64, u64>,
                T4: ::planus::WriteAsDefault<u64, u64>,
                T5: ::planus::WriteAsDefault<u64, u64>,
                T6: ::planus::WriteAsOptional<::planus::Offset<::core::primitive::str>>,
            > ::planus::WriteAsOffset<Hello>
            for HelloBuilder<(T0, T1, T2, T3, T4, T5, T6)> {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hello> {
                    let (v0, v1, v2, v3, v4, v5, v6) = &self.0;
                    Hello::create(builder, v0, v1, v2, v3, v4, v5, v6)
                }
            }
            /// Reference to a deserialized [Hello].
            #[derive(Copy, Clone)]
            pub struct HelloRef<'a>(
                #[allow(dead_code)]
                ::planus::table_reader::Table<'a>,
            );
            impl<'a> HelloRef<'a> {
                /// Getter for the [`schema` field](Hello#structfield.schema).
                #[inline]
                pub fn schema(&self) -> ::planus::Result<u32> {
                    ::core::result::Result::Ok(
                        self.0.access(0, "Hello", "schema")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`rank` field](Hello#structfield.rank).
                #[inline]
                pub fn rank(&self) -> ::planus::Result<u32> {
                    ::core::result::Result::Ok(
                        self.0.access(1, "Hello", "rank")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`workers` field](Hello#structfield.workers).
                #[inline]
                pub fn workers(&self) -> ::planus::Result<u32> {
                    ::core::result::Result::Ok(
                        self.0.access(2, "Hello", "workers")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`store_bytes` field](Hello#structfield.store_bytes).
                #[inline]
                pub fn store_bytes(&self) -> ::planus::Result<u64> {
                    ::core::result::Result::Ok(
                        self.0.access(3, "Hello", "store_bytes")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`tasks_hash` field](Hello#structfield.tasks_hash).
                #[inline]
                pub fn tasks_hash(&self) -> ::planus::Result<u64> {
                    ::core::result::Result::Ok(
                        self.0.access(4, "Hello", "tasks_hash")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`region_bytes` field](Hello#structfield.region_bytes).
                #[inline]
                pub fn region_bytes(&self) -> ::planus::Result<u64> {
                    ::core::result::Result::Ok(
                        self.0.access(5, "Hello", "region_bytes")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`resources` field](Hello#structfield.resources).
                #[inline]
                pub fn resources(
                    &self,
                ) -> ::planus::Result<
                    ::core::option::Option<&'a ::core::primitive::str>,
                > {
                    self.0.access(6, "Hello", "resources")
                }
            }
            impl<'a> ::core::fmt::Debug for HelloRef<'a> {
                fn fmt(
                    &self,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    let mut f = f.debug_struct("HelloRef");
                    f.field("schema", &self.schema());
                    f.field("rank", &self.rank());
                    f.field("workers", &self.workers());
                    f.field("store_bytes", &self.store_bytes());
                    f.field("tasks_hash", &self.tasks_hash());
                    f.field("region_bytes", &self.region_bytes());
                    if let ::core::option::Option::Some(field_resources) = self
                        .resources()
                        .transpose()
                    {
                        f.field("resources", &field_resources);
                    }
                    f.finish()
                }
            }
            impl<'a> ::core::convert::TryFrom<HelloRef<'a>> for Hello {
                type Error = ::planus::Error;
                #[allow(unreachable_code)]
                fn try_from(value: HelloRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(Self {
                        schema: ::core::convert::TryInto::try_into(value.schema()?)?,
                        rank: ::core::convert::TryInto::try_into(value.rank()?)?,
                        workers: ::core::convert::TryInto::try_into(value.workers()?)?,
                        store_bytes: ::core::convert::TryInto::try_into(
                            value.store_bytes()?,
                        )?,
                        tasks_hash: ::core::convert::TryInto::try_into(
                            value.tasks_hash()?,
                        )?,
                        region_bytes: ::core::convert::TryInto::try_into(
                            value.region_bytes()?,
                        )?,
                        resources: value.resources()?.map(::core::convert::Into::into),
                    })
                }
            }
            impl<'a> ::planus::TableRead<'a> for HelloRef<'a> {
                #[inline]
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    ::core::result::Result::Ok(
                        Self(::planus::table_reader::Table::from_buffer(buffer, offset)?),
                    )
                }
            }
            impl<'a> ::planus::VectorReadInner<'a> for HelloRef<'a> {
                type Error = ::planus::Error;
                const STRIDE: usize = 4;
                unsafe fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(buffer, offset)
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location(
                                    "[HelloRef]",
                                    "get",
                                    buffer.offset_from_start,
                                )
                        })
                }
            }
            /// # Safety
            /// The planus compiler generates implementations that initialize
            /// the bytes in `write_values`.
            unsafe impl ::planus::VectorWrite<::planus::Offset<Hello>> for Hello {
                type Value = ::planus::Offset<Hello>;
                const STRIDE: usize = 4;
                #[inline]
                fn prepare(&self, builder: &mut ::planus::Builder) -> Self::Value {
                    ::planus::WriteAs::prepare(self, builder)
                }
                #[inline]
                unsafe fn write_values(
                    values: &[::planus::Offset<Hello>],
                    bytes: *mut ::core::mem::MaybeUninit<u8>,
                    buffer_position: u32,
                ) {
                    let bytes = bytes as *mut [::core::mem::MaybeUninit<u8>; 4];
                    for (i, v) in ::core::iter::Iterator::enumerate(values.iter()) {
                        ::planus::WriteAsPrimitive::write(
                            v,
                            ::planus::Cursor::new(unsafe { &mut *bytes.add(i) }),
                            buffer_position - (Self::STRIDE * i) as u32,
                        );
                    }
                }
            }
            impl<'a> ::planus::ReadAsRoot<'a> for HelloRef<'a> {
                fn read_as_root(slice: &'a [u8]) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(
                            ::planus::SliceWithStartOffset {
                                buffer: slice,
                                offset_from_start: 0,
                            },
                            0,
                        )
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location("[HelloRef]", "read_as_root", 0)
                        })
                }
            }
            ///  One task that an error passed through.
            ///
            /// Generated from these locations:
            /// * Table `Hop` in the file `schema/control.fbs:32`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub struct Hop {
                ///  The task's name.
                pub task: ::planus::alloc::string::String,
                ///  The rank that it ran on.
                pub rank: u32,
            }
            #[allow(clippy::derivable_impls)]
            impl ::core::default::Default for Hop {
                fn default() -> Self {
                    Self {
                        task: ::core::default::Default::default(),
                        rank: 0,
                    }
                }
            }
            impl Hop {
                /// Creates a [HopBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> HopBuilder<()> {
                    HopBuilder(())
                }
                #[allow(clippy::too_many_arguments)]
                pub fn create(
                    builder: &mut ::planus::Builder,
                    field_task: impl ::planus::WriteAs<::planus::Offset<str>>,
                    field_rank: impl ::planus::WriteAsDefault<u32, u32>,
                ) -> ::planus::Offset<Self> {
                    let prepared_task = field_task.prepare(builder);
                    let prepared_rank = field_rank.prepare(builder, &0);
                    let mut table_writer: ::planus::table_writer::TableWriter<8> = ::core::default::Default::default();
                    table_writer.write_entry::<::planus::Offset<str>>(0);
                    if prepared_rank.is_some() {
                        table_writer.write_entry::<u32>(1);
                    }
                    unsafe {
                        table_writer
                            .finish(
                                builder,
                                |object_writer| {
                                    object_writer.write::<_, _, 4>(&prepared_task);
                                    if let ::core::option::Option::Some(prepared_rank) = prepared_rank {
                                        object_writer.write::<_, _, 4>(&prepared_rank);
                                    }
                                },
                            );
                    }
                    builder.current_offset()
                }
            }
            impl ::planus::WriteAs<::planus::Offset<Hop>> for Hop {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hop> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl ::planus::WriteAsOptional<::planus::Offset<Hop>> for Hop {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Hop>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl ::planus::WriteAsOffset<Hop> for Hop {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hop> {
                    Hop::create(builder, &self.task, self.rank)
                }
            }
            /// Builder for serializing an instance of the [Hop] type.
            ///
            /// Can be created using the [Hop::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct HopBuilder<State>(State);
            impl HopBuilder<()> {
                /// Setter for the [`task` field](Hop#structfield.task).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn task<T0>(self, value: T0) -> HopBuilder<(T0,)>
                where
                    T0: ::planus::WriteAs<::planus::Offset<str>>,
                {
                    HopBuilder((value,))
                }
            }
            impl<T0> HopBuilder<(T0,)> {
                /// Setter for the [`rank` field](Hop#structfield.rank).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn rank<T1>(self, value: T1) -> HopBuilder<(T0, T1)>
                where
                    T1: ::planus::WriteAsDefault<u32, u32>,
                {
                    let (v0,) = self.0;
                    HopBuilder((v0, value))
                }
                /// Sets the [`rank` field](Hop#structfield.rank) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn rank_as_default(
                    self,
                ) -> HopBuilder<(T0, ::planus::DefaultValue)> {
                    self.rank(::planus::DefaultValue)
                }
            }
            impl<T0, T1> HopBuilder<(T0, T1)> {
                /// Finish writing the builder to get an [Offset](::planus::Offset) to a serialized [Hop].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hop>
                where
                    Self: ::planus::WriteAsOffset<Hop>,
                {
                    ::planus::WriteAsOffset::prepare(&self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAs<::planus::Offset<str>>,
                T1: ::planus::WriteAsDefault<u32, u32>,
            > ::planus::WriteAs<::planus::Offset<Hop>> for HopBuilder<(T0, T1)> {
                type Prepared = ::planus::Offset<Hop>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hop> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAs<::planus::Offset<str>>,
                T1: ::planus::WriteAsDefault<u32, u32>,
            > ::planus::WriteAsOptional<::planus::Offset<Hop>> for HopBuilder<(T0, T1)> {
                type Prepared = ::planus::Offset<Hop>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Hop>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl<
                T0: ::planus::WriteAs<::planus::Offset<str>>,
                T1: ::planus::WriteAsDefault<u32, u32>,
            > ::planus::WriteAsOffset<Hop> for HopBuilder<(T0, T1)> {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Hop> {
                    let (v0, v1) = &self.0;
                    Hop::create(builder, v0, v1)
                }
            }
            /// Reference to a deserialized [Hop].
            #[derive(Copy, Clone)]
            pub struct HopRef<'a>(#[allow(dead_code)] ::planus::table_reader::Table<'a>);
            impl<'a> HopRef<'a> {
                /// Getter for the [`task` field](Hop#structfield.task).
                #[inline]
                pub fn task(&self) -> ::planus::Result<&'a ::core::primitive::str> {
                    self.0.access_required(0, "Hop", "task")
                }
                /// Getter for the [`rank` field](Hop#structfield.rank).
                #[inline]
                pub fn rank(&self) -> ::planus::Result<u32> {
                    ::core::result::Result::Ok(
                        self.0.access(1, "Hop", "rank")?.unwrap_or(0),
                    )
                }
            }
            impl<'a> ::core::fmt::Debug for HopRef<'a> {
                fn fmt(
                    &self,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    let mut f = f.debug_struct("HopRef");
                    f.field("task", &self.task());
                    f.field("rank", &self.rank());
                    f.finish()
                }
            }
            impl<'a> ::core::convert::TryFrom<HopRef<'a>> for Hop {
                type Error = ::planus::Error;
                #[allow(unreachable_code)]
                fn try_from(value: HopRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(Self {
                        task: ::core::convert::Into::into(value.task()?),
                        rank: ::core::convert::TryInto::try_into(value.rank()?)?,
                    })
                }
            }
            impl<'a> ::planus::TableRead<'a> for HopRef<'a> {
                #[inline]
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    ::core::result::Result::Ok(
                        Self(::planus::table_reader::Table::from_buffer(buffer, offset)?),
                    )
                }
            }
            impl<'a> ::planus::VectorReadInner<'a> for HopRef<'a> {
                type Error = ::planus::Error;
                const STRIDE: usize = 4;
                unsafe fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(buffer, offset)
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location(
                                    "[HopRef]",
                                    "get",
                                    buffer.offset_from_start,
                                )
                        })
                }
            }
            /// # Safety
            /// The planus compiler generates implementations that initialize
            /// the bytes in `write_values`.
            unsafe impl ::planus::VectorWrite<::planus::Offset<Hop>> for Hop {
                type Value = ::planus::Offset<Hop>;
                const STRIDE: usize = 4;
                #[inline]
                fn prepare(&self, builder: &mut ::planus::Builder) -> Self::Value {
                    ::planus::WriteAs::prepare(self, builder)
                }
                #[inline]
                unsafe fn write_values(
                    values: &[::planus::Offset<Hop>],
                    bytes: *mut ::core::mem::MaybeUninit<u8>,
                    buffer_position: u32,
                ) {
                    let bytes = bytes as *mut [::core::mem::MaybeUninit<u8>; 4];
                    for (i, v) in ::core::iter::Iterator::enumerate(values.iter()) {
                        ::planus::WriteAsPrimitive::write(
                            v,
                            ::planus::Cursor::new(unsafe { &mut *bytes.add(i) }),
                            buffer_position - (Self::STRIDE * i) as u32,
                        );
                    }
                }
            }
            impl<'a> ::planus::ReadAsRoot<'a> for HopRef<'a> {
                fn read_as_root(slice: &'a [u8]) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(
                            ::planus::SliceWithStartOffset {
                                buffer: slice,
                                offset_from_start: 0,
                            },
                            0,
                        )
                        .map_err(|error_kind| {
                            error_kind.with_error_location("[HopRef]", "read_as_root", 0)
                        })
                }
            }
            ///  The error value of a task, sent instead of its result.
            ///
            /// Generated from these locations:
            /// * Table `ErrorReport` in the file `schema/control.fbs:40`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub struct ErrorReport {
                ///  The slot at the receiver that awaits the result.
                pub request: u64,
                ///  `base::ErrorKind` as a number.
                pub kind: u8,
                ///  What happened and what to do, in one line.
                pub message: ::planus::alloc::string::String,
                ///  The tasks it passed through, the failed one first.
                pub trail: ::planus::alloc::vec::Vec<self::Hop>,
            }
            #[allow(clippy::derivable_impls)]
            impl ::core::default::Default for ErrorReport {
                fn default() -> Self {
                    Self {
                        request: 0,
                        kind: 0,
                        message: ::core::default::Default::default(),
                        trail: ::core::default::Default::default(),
                    }
                }
            }
            impl ErrorReport {
                /// Creates a [ErrorReportBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> ErrorReportBuilder<()> {
                    ErrorReportBuilder(())
                }
                #[allow(clippy::too_many_arguments)]
                pub fn create(
                    builder: &mut ::planus::Builder,
                    field_request: impl ::planus::WriteAsDefault<u64, u64>,
                    field_kind: impl ::planus::WriteAsDefault<u8, u8>,
                    field_message: impl ::planus::WriteAs<::planus::Offset<str>>,
                    field_trail: impl ::planus::WriteAs<
                        ::planus::Offset<[::planus::Offset<self::Hop>]>,
                    >,
                ) -> ::planus::Offset<Self> {
                    let prepared_request = field_request.prepare(builder, &0);
                    let prepared_kind = field_kind.prepare(builder, &0);
                    let prepared_message = field_message.prepare(builder);
                    let prepared_trail = field_trail.prepare(builder);
                    let mut table_writer: ::planus::table_writer::TableWriter<12> = ::core::default::Default::default();
                    if prepared_request.is_some() {
                        table_writer.write_entry::<u64>(0);
                    }
                    table_writer.write_entry::<::planus::Offset<str>>(2);
                    table_writer
                        .write_entry::<
                            ::planus::Offset<[::planus::Offset<self::Hop>]>,
                        >(3);
                    if prepared_kind.is_some() {
                        table_writer.write_entry::<u8>(1);
                    }
                    unsafe {
                        table_writer
                            .finish(
                                builder,
                                |object_writer| {
                                    if let ::core::option::Option::Some(prepared_request) = prepared_request {
                                        object_writer.write::<_, _, 8>(&prepared_request);
                                    }
                                    object_writer.write::<_, _, 4>(&prepared_message);
                                    object_writer.write::<_, _, 4>(&prepared_trail);
                                    if let ::core::option::Option::Some(prepared_kind) = prepared_kind {
                                        object_writer.write::<_, _, 1>(&prepared_kind);
                                    }
                                },
                            );
                    }
                    builder.current_offset()
                }
            }
            impl ::planus::WriteAs<::planus::Offset<ErrorReport>> for ErrorReport {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<ErrorReport> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl ::planus::WriteAsOptional<::planus::Offset<ErrorReport>>
            for ErrorReport {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<ErrorReport>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl ::planus::WriteAsOffset<ErrorReport> for ErrorReport {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<ErrorReport> {
                    ErrorReport::create(
                        builder,
                        self.request,
                        self.kind,
                        &self.message,
                        &self.trail,
                    )
                }
            }
            /// Builder for serializing an instance of the [ErrorReport] type.
            ///
            /// Can be created using the [ErrorReport::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct ErrorReportBuilder<State>(State);
            impl ErrorReportBuilder<()> {
                /// Setter for the [`request` field](ErrorReport#structfield.request).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn request<T0>(self, value: T0) -> ErrorReportBuilder<(T0,)>
                where
                    T0: ::planus::WriteAsDefault<u64, u64>,
                {
                    ErrorReportBuilder((value,))
                }
                /// Sets the [`request` field](ErrorReport#structfield.request) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn request_as_default(
                    self,
                ) -> ErrorReportBuilder<(::planus::DefaultValue,)> {
                    self.request(::planus::DefaultValue)
                }
            }
            impl<T0> ErrorReportBuilder<(T0,)> {
                /// Setter for the [`kind` field](ErrorReport#structfield.kind).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn kind<T1>(self, value: T1) -> ErrorReportBuilder<(T0, T1)>
                where
                    T1: ::planus::WriteAsDefault<u8, u8>,
                {
                    let (v0,) = self.0;
                    ErrorReportBuilder((v0, value))
                }
                /// Sets the [`kind` field](ErrorReport#structfield.kind) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn kind_as_default(
                    self,
                ) -> ErrorReportBuilder<(T0, ::planus::DefaultValue)> {
                    self.kind(::planus::DefaultValue)
                }
            }
            impl<T0, T1> ErrorReportBuilder<(T0, T1)> {
                /// Setter for the [`message` field](ErrorReport#structfield.message).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn message<T2>(self, value: T2) -> ErrorReportBuilder<(T0, T1, T2)>
                where
                    T2: ::planus::WriteAs<::planus::Offset<str>>,
                {
                    let (v0, v1) = self.0;
                    ErrorReportBuilder((v0, v1, value))
                }
            }
            impl<T0, T1, T2> ErrorReportBuilder<(T0, T1, T2)> {
                /// Setter for the [`trail` field](ErrorReport#structfield.trail).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn trail<T3>(self, value: T3) -> ErrorReportBuilder<(T0, T1, T2, T3)>
                where
                    T3: ::planus::WriteAs<
                        ::planus::Offset<[::planus::Offset<self::Hop>]>,
                    >,
                {
                    let (v0, v1, v2) = self.0;
                    ErrorReportBuilder((v0, v1, v2, value))
                }
            }
            impl<T0, T1, T2, T3> ErrorReportBuilder<(T0, T1, T2, T3)> {
                /// Finish writing the builder to get an [Offset](::planus::Offset) to a serialized [ErrorReport].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<ErrorReport>
                where
                    Self: ::planus::WriteAsOffset<ErrorReport>,
                {
                    ::planus::WriteAsOffset::prepare(&self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<u64, u64>,
                T1: ::planus::WriteAsDefault<u8, u8>,
                T2: ::planus::WriteAs<::planus::Offset<str>>,
                T3: ::planus::WriteAs<::planus::Offset<[::planus::Offset<self::Hop>]>>,
            > ::planus::WriteAs<::planus::Offset<ErrorReport>>
            for ErrorReportBuilder<(T0, T1, T2, T3)> {
                type Prepared = ::planus::Offset<ErrorReport>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<ErrorReport> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<u64, u64>,
                T1: ::planus::WriteAsDefault<u8, u8>,
                T2: ::planus::WriteAs<::planus::Offset<str>>,
                T3: ::planus::WriteAs<::planus::Offset<[::planus::Offset<self::Hop>]>>,
            > ::planus::WriteAsOptional<::planus::Offset<ErrorReport>>
            for ErrorReportBuilder<(T0, T1, T2, T3)> {
                type Prepared = ::planus::Offset<ErrorReport>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<ErrorReport>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<u64, u64>,
                T1: ::planus::WriteAsDefault<u8, u8>,
                T2: ::planus::WriteAs<::planus::Offset<str>>,
                T3: ::planus::WriteAs<::planus::Offset<[::planus::Offset<self::Hop>]>>,
            > ::planus::WriteAsOffset<ErrorReport>
            for ErrorReportBuilder<(T0, T1, T2, T3)> {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<ErrorReport> {
                    let (v0, v1, v2, v3) = &self.0;
                    ErrorReport::create(builder, v0, v1, v2, v3)
                }
            }
            /// Reference to a deserialized [ErrorReport].
            #[derive(Copy, Clone)]
            pub struct ErrorReportRef<'a>(
                #[allow(dead_code)]
                ::planus::table_reader::Table<'a>,
            );
            impl<'a> ErrorReportRef<'a> {
                /// Getter for the [`request` field](ErrorReport#structfield.request).
                #[inline]
                pub fn request(&self) -> ::planus::Result<u64> {
                    ::core::result::Result::Ok(
                        self.0.access(0, "ErrorReport", "request")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`kind` field](ErrorReport#structfield.kind).
                #[inline]
                pub fn kind(&self) -> ::planus::Result<u8> {
                    ::core::result::Result::Ok(
                        self.0.access(1, "ErrorReport", "kind")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`message` field](ErrorReport#structfield.message).
                #[inline]
                pub fn message(&self) -> ::planus::Result<&'a ::core::primitive::str> {
                    self.0.access_required(2, "ErrorReport", "message")
                }
                /// Getter for the [`trail` field](ErrorReport#structfield.trail).
                #[inline]
                pub fn trail(
                    &self,
                ) -> ::planus::Result<
                    ::planus::Vector<'a, ::planus::Result<self::HopRef<'a>>>,
                > {
                    self.0.access_required(3, "ErrorReport", "trail")
                }
            }
            impl<'a> ::core::fmt::Debug for ErrorReportRef<'a> {
                fn fmt(
                    &self,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    let mut f = f.debug_struct("ErrorReportRef");
                    f.field("request", &self.request());
                    f.field("kind", &self.kind());
                    f.field("message", &self.message());
                    f.field("trail", &self.trail());
                    f.finish()
                }
            }
            impl<'a> ::core::convert::TryFrom<ErrorReportRef<'a>> for ErrorReport {
                type Error = ::planus::Error;
                #[allow(unreachable_code)]
                fn try_from(value: ErrorReportRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(Self {
                        request: ::core::convert::TryInto::try_into(value.request()?)?,
                        kind: ::core::convert::TryInto::try_into(value.kind()?)?,
                        message: ::core::convert::Into::into(value.message()?),
                        trail: value.trail()?.to_vec_result()?,
                    })
                }
            }
            impl<'a> ::planus::TableRead<'a> for ErrorReportRef<'a> {
                #[inline]
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    ::core::result::Result::Ok(
                        Self(::planus::table_reader::Table::from_buffer(buffer, offset)?),
                    )
                }
            }
            impl<'a> ::planus::VectorReadInner<'a> for ErrorReportRef<'a> {
                type Error = ::planus::Error;
                const STRIDE: usize = 4;
                unsafe fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(buffer, offset)
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location(
                                    "[ErrorReportRef]",
                                    "get",
                                    buffer.offset_from_start,
                                )
                        })
                }
            }
            /// # Safety
            /// The planus compiler generates implementations that initialize
            /// the bytes in `write_values`.
            unsafe impl ::planus::VectorWrite<::planus::Offset<ErrorReport>>
            for ErrorReport {
                type Value = ::planus::Offset<ErrorReport>;
                const STRIDE: usize = 4;
                #[inline]
                fn prepare(&self, builder: &mut ::planus::Builder) -> Self::Value {
                    ::planus::WriteAs::prepare(self, builder)
                }
                #[inline]
                unsafe fn write_values(
                    values: &[::planus::Offset<ErrorReport>],
                    bytes: *mut ::core::mem::MaybeUninit<u8>,
                    buffer_position: u32,
                ) {
                    let bytes = bytes as *mut [::core::mem::MaybeUninit<u8>; 4];
                    for (i, v) in ::core::iter::Iterator::enumerate(values.iter()) {
                        ::planus::WriteAsPrimitive::write(
                            v,
                            ::planus::Cursor::new(unsafe { &mut *bytes.add(i) }),
                            buffer_position - (Self::STRIDE * i) as u32,
                        );
                    }
                }
            }
            impl<'a> ::planus::ReadAsRoot<'a> for ErrorReportRef<'a> {
                fn read_as_root(slice: &'a [u8]) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(
                            ::planus::SliceWithStartOffset {
                                buffer: slice,
                                offset_from_start: 0,
                            },
                            0,
                        )
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location("[ErrorReportRef]", "read_as_root", 0)
                        })
                }
            }
            ///  The sender is done with the job and will send nothing more.
            ///
            /// Generated from these locations:
            /// * Table `Goodbye` in the file `schema/control.fbs:52`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub struct Goodbye {
                ///  The sender's exit status.
                pub status: i32,
                ///  Why, in one line; empty when all went well.
                pub reason: ::planus::alloc::string::String,
            }
            #[allow(clippy::derivable_impls)]
            impl ::core::default::Default for Goodbye {
                fn default() -> Self {
                    Self {
                        status: 0,
                        reason: ::core::default::Default::default(),
                    }
                }
            }
            impl Goodbye {
                /// Creates a [GoodbyeBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> GoodbyeBuilder<()> {
                    GoodbyeBuilder(())
                }
                #[allow(clippy::too_many_arguments)]
                pub fn create(
                    builder: &mut ::planus::Builder,
                    field_status: impl ::planus::WriteAsDefault<i32, i32>,
                    field_reason: impl ::planus::WriteAs<::planus::Offset<str>>,
                ) -> ::planus::Offset<Self> {
                    let prepared_status = field_status.prepare(builder, &0);
                    let prepared_reason = field_reason.prepare(builder);
                    let mut table_writer: ::planus::table_writer::TableWriter<8> = ::core::default::Default::default();
                    if prepared_status.is_some() {
                        table_writer.write_entry::<i32>(0);
                    }
                    table_writer.write_entry::<::planus::Offset<str>>(1);
                    unsafe {
                        table_writer
                            .finish(
                                builder,
                                |object_writer| {
                                    if let ::core::option::Option::Some(prepared_status) = prepared_status {
                                        object_writer.write::<_, _, 4>(&prepared_status);
                                    }
                                    object_writer.write::<_, _, 4>(&prepared_reason);
                                },
                            );
                    }
                    builder.current_offset()
                }
            }
            impl ::planus::WriteAs<::planus::Offset<Goodbye>> for Goodbye {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Goodbye> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl ::planus::WriteAsOptional<::planus::Offset<Goodbye>> for Goodbye {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Goodbye>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl ::planus::WriteAsOffset<Goodbye> for Goodbye {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Goodbye> {
                    Goodbye::create(builder, self.status, &self.reason)
                }
            }
            /// Builder for serializing an instance of the [Goodbye] type.
            ///
            /// Can be created using the [Goodbye::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct GoodbyeBuilder<State>(State);
            impl GoodbyeBuilder<()> {
                /// Setter for the [`status` field](Goodbye#structfield.status).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn status<T0>(self, value: T0) -> GoodbyeBuilder<(T0,)>
                where
                    T0: ::planus::WriteAsDefault<i32, i32>,
                {
                    GoodbyeBuilder((value,))
                }
                /// Sets the [`status` field](Goodbye#structfield.status) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn status_as_default(
                    self,
                ) -> GoodbyeBuilder<(::planus::DefaultValue,)> {
                    self.status(::planus::DefaultValue)
                }
            }
            impl<T0> GoodbyeBuilder<(T0,)> {
                /// Setter for the [`reason` field](Goodbye#structfield.reason).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn reason<T1>(self, value: T1) -> GoodbyeBuilder<(T0, T1)>
                where
                    T1: ::planus::WriteAs<::planus::Offset<str>>,
                {
                    let (v0,) = self.0;
                    GoodbyeBuilder((v0, value))
                }
            }
            impl<T0, T1> GoodbyeBuilder<(T0, T1)> {
                /// Finish writing the builder to get an [Offset](::planus::Offset) to a serialized [Goodbye].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Goodbye>
                where
                    Self: ::planus::WriteAsOffset<Goodbye>,
                {
                    ::planus::WriteAsOffset::prepare(&self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<i32, i32>,
                T1: ::planus::WriteAs<::planus::Offset<str>>,
            > ::planus::WriteAs<::planus::Offset<Goodbye>> for GoodbyeBuilder<(T0, T1)> {
                type Prepared = ::planus::Offset<Goodbye>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Goodbye> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<i32, i32>,
                T1: ::planus::WriteAs<::planus::Offset<str>>,
            > ::planus::WriteAsOptional<::planus::Offset<Goodbye>>
            for GoodbyeBuilder<(T0, T1)> {
                type Prepared = ::planus::Offset<Goodbye>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Goodbye>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<i32, i32>,
                T1: ::planus::WriteAs<::planus::Offset<str>>,
            > ::planus::WriteAsOffset<Goodbye> for GoodbyeBuilder<(T0, T1)> {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Goodbye> {
                    let (v0, v1) = &self.0;
                    Goodbye::create(builder, v0, v1)
                }
            }
            /// Reference to a deserialized [Goodbye].
            #[derive(Copy, Clone)]
            pub struct GoodbyeRef<'a>(
                #[allow(dead_code)]
                ::planus::table_reader::Table<'a>,
            );
            impl<'a> GoodbyeRef<'a> {
                /// Getter for the [`status` field](Goodbye#structfield.status).
                #[inline]
                pub fn status(&self) -> ::planus::Result<i32> {
                    ::core::result::Result::Ok(
                        self.0.access(0, "Goodbye", "status")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`reason` field](Goodbye#structfield.reason).
                #[inline]
                pub fn reason(&self) -> ::planus::Result<&'a ::core::primitive::str> {
                    self.0.access_required(1, "Goodbye", "reason")
                }
            }
            impl<'a> ::core::fmt::Debug for GoodbyeRef<'a> {
                fn fmt(
                    &self,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    let mut f = f.debug_struct("GoodbyeRef");
                    f.field("status", &self.status());
                    f.field("reason", &self.reason());
                    f.finish()
                }
            }
            impl<'a> ::core::convert::TryFrom<GoodbyeRef<'a>> for Goodbye {
                type Error = ::planus::Error;
                #[allow(unreachable_code)]
                fn try_from(value: GoodbyeRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(Self {
                        status: ::core::convert::TryInto::try_into(value.status()?)?,
                        reason: ::core::convert::Into::into(value.reason()?),
                    })
                }
            }
            impl<'a> ::planus::TableRead<'a> for GoodbyeRef<'a> {
                #[inline]
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    ::core::result::Result::Ok(
                        Self(::planus::table_reader::Table::from_buffer(buffer, offset)?),
                    )
                }
            }
            impl<'a> ::planus::VectorReadInner<'a> for GoodbyeRef<'a> {
                type Error = ::planus::Error;
                const STRIDE: usize = 4;
                unsafe fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(buffer, offset)
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location(
                                    "[GoodbyeRef]",
                                    "get",
                                    buffer.offset_from_start,
                                )
                        })
                }
            }
            /// # Safety
            /// The planus compiler generates implementations that initialize
            /// the bytes in `write_values`.
            unsafe impl ::planus::VectorWrite<::planus::Offset<Goodbye>> for Goodbye {
                type Value = ::planus::Offset<Goodbye>;
                const STRIDE: usize = 4;
                #[inline]
                fn prepare(&self, builder: &mut ::planus::Builder) -> Self::Value {
                    ::planus::WriteAs::prepare(self, builder)
                }
                #[inline]
                unsafe fn write_values(
                    values: &[::planus::Offset<Goodbye>],
                    bytes: *mut ::core::mem::MaybeUninit<u8>,
                    buffer_position: u32,
                ) {
                    let bytes = bytes as *mut [::core::mem::MaybeUninit<u8>; 4];
                    for (i, v) in ::core::iter::Iterator::enumerate(values.iter()) {
                        ::planus::WriteAsPrimitive::write(
                            v,
                            ::planus::Cursor::new(unsafe { &mut *bytes.add(i) }),
                            buffer_position - (Self::STRIDE * i) as u32,
                        );
                    }
                }
            }
            impl<'a> ::planus::ReadAsRoot<'a> for GoodbyeRef<'a> {
                fn read_as_root(slice: &'a [u8]) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(
                            ::planus::SliceWithStartOffset {
                                buffer: slice,
                                offset_from_start: 0,
                            },
                            0,
                        )
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location("[GoodbyeRef]", "read_as_root", 0)
                        })
                }
            }
            ///  The driver's order to end the job.
            ///
            /// Generated from these locations:
            /// * Table `Shutdown` in the file `schema/control.fbs:60`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub struct Shutdown {
                ///  The exit status of the job.
                pub status: i32,
                ///  Why, in one line; empty when all went well.
                pub reason: ::planus::alloc::string::String,
            }
            #[allow(clippy::derivable_impls)]
            impl ::core::default::Default for Shutdown {
                fn default() -> Self {
                    Self {
                        status: 0,
                        reason: ::core::default::Default::default(),
                    }
                }
            }
            impl Shutdown {
                /// Creates a [ShutdownBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> ShutdownBuilder<()> {
                    ShutdownBuilder(())
                }
                #[allow(clippy::too_many_arguments)]
                pub fn create(
                    builder: &mut ::planus::Builder,
                    field_status: impl ::planus::WriteAsDefault<i32, i32>,
                    field_reason: impl ::planus::WriteAs<::planus::Offset<str>>,
                ) -> ::planus::Offset<Self> {
                    let prepared_status = field_status.prepare(builder, &0);
                    let prepared_reason = field_reason.prepare(builder);
                    let mut table_writer: ::planus::table_writer::TableWriter<8> = ::core::default::Default::default();
                    if prepared_status.is_some() {
                        table_writer.write_entry::<i32>(0);
                    }
                    table_writer.write_entry::<::planus::Offset<str>>(1);
                    unsafe {
                        table_writer
                            .finish(
                                builder,
                                |object_writer| {
                                    if let ::core::option::Option::Some(prepared_status) = prepared_status {
                                        object_writer.write::<_, _, 4>(&prepared_status);
                                    }
                                    object_writer.write::<_, _, 4>(&prepared_reason);
                                },
                            );
                    }
                    builder.current_offset()
                }
            }
            impl ::planus::WriteAs<::planus::Offset<Shutdown>> for Shutdown {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Shutdown> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl ::planus::WriteAsOptional<::planus::Offset<Shutdown>> for Shutdown {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Shutdown>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl ::planus::WriteAsOffset<Shutdown> for Shutdown {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Shutdown> {
                    Shutdown::create(builder, self.status, &self.reason)
                }
            }
            /// Builder for serializing an instance of the [Shutdown] type.
            ///
            /// Can be created using the [Shutdown::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct ShutdownBuilder<State>(State);
            impl ShutdownBuilder<()> {
                /// Setter for the [`status` field](Shutdown#structfield.status).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn status<T0>(self, value: T0) -> ShutdownBuilder<(T0,)>
                where
                    T0: ::planus::WriteAsDefault<i32, i32>,
                {
                    ShutdownBuilder((value,))
                }
                /// Sets the [`status` field](Shutdown#structfield.status) to the default value.
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn status_as_default(
                    self,
                ) -> ShutdownBuilder<(::planus::DefaultValue,)> {
                    self.status(::planus::DefaultValue)
                }
            }
            impl<T0> ShutdownBuilder<(T0,)> {
                /// Setter for the [`reason` field](Shutdown#structfield.reason).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn reason<T1>(self, value: T1) -> ShutdownBuilder<(T0, T1)>
                where
                    T1: ::planus::WriteAs<::planus::Offset<str>>,
                {
                    let (v0,) = self.0;
                    ShutdownBuilder((v0, value))
                }
            }
            impl<T0, T1> ShutdownBuilder<(T0, T1)> {
                /// Finish writing the builder to get an [Offset](::planus::Offset) to a serialized [Shutdown].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Shutdown>
                where
                    Self: ::planus::WriteAsOffset<Shutdown>,
                {
                    ::planus::WriteAsOffset::prepare(&self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<i32, i32>,
                T1: ::planus::WriteAs<::planus::Offset<str>>,
            > ::planus::WriteAs<::planus::Offset<Shutdown>>
            for ShutdownBuilder<(T0, T1)> {
                type Prepared = ::planus::Offset<Shutdown>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Shutdown> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<i32, i32>,
                T1: ::planus::WriteAs<::planus::Offset<str>>,
            > ::planus::WriteAsOptional<::planus::Offset<Shutdown>>
            for ShutdownBuilder<(T0, T1)> {
                type Prepared = ::planus::Offset<Shutdown>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Shutdown>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl<
                T0: ::planus::WriteAsDefault<i32, i32>,
                T1: ::planus::WriteAs<::planus::Offset<str>>,
            > ::planus::WriteAsOffset<Shutdown> for ShutdownBuilder<(T0, T1)> {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Shutdown> {
                    let (v0, v1) = &self.0;
                    Shutdown::create(builder, v0, v1)
                }
            }
            /// Reference to a deserialized [Shutdown].
            #[derive(Copy, Clone)]
            pub struct ShutdownRef<'a>(
                #[allow(dead_code)]
                ::planus::table_reader::Table<'a>,
            );
            impl<'a> ShutdownRef<'a> {
                /// Getter for the [`status` field](Shutdown#structfield.status).
                #[inline]
                pub fn status(&self) -> ::planus::Result<i32> {
                    ::core::result::Result::Ok(
                        self.0.access(0, "Shutdown", "status")?.unwrap_or(0),
                    )
                }
                /// Getter for the [`reason` field](Shutdown#structfield.reason).
                #[inline]
                pub fn reason(&self) -> ::planus::Result<&'a ::core::primitive::str> {
                    self.0.access_required(1, "Shutdown", "reason")
                }
            }
            impl<'a> ::core::fmt::Debug for ShutdownRef<'a> {
                fn fmt(
                    &self,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    let mut f = f.debug_struct("ShutdownRef");
                    f.field("status", &self.status());
                    f.field("reason", &self.reason());
                    f.finish()
                }
            }
            impl<'a> ::core::convert::TryFrom<ShutdownRef<'a>> for Shutdown {
                type Error = ::planus::Error;
                #[allow(unreachable_code)]
                fn try_from(value: ShutdownRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(Self {
                        status: ::core::convert::TryInto::try_into(value.status()?)?,
                        reason: ::core::convert::Into::into(value.reason()?),
                    })
                }
            }
            impl<'a> ::planus::TableRead<'a> for ShutdownRef<'a> {
                #[inline]
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    ::core::result::Result::Ok(
                        Self(::planus::table_reader::Table::from_buffer(buffer, offset)?),
                    )
                }
            }
            impl<'a> ::planus::VectorReadInner<'a> for ShutdownRef<'a> {
                type Error = ::planus::Error;
                const STRIDE: usize = 4;
                unsafe fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(buffer, offset)
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location(
                                    "[ShutdownRef]",
                                    "get",
                                    buffer.offset_from_start,
                                )
                        })
                }
            }
            /// # Safety
            /// The planus compiler generates implementations that initialize
            /// the bytes in `write_values`.
            unsafe impl ::planus::VectorWrite<::planus::Offset<Shutdown>> for Shutdown {
                type Value = ::planus::Offset<Shutdown>;
                const STRIDE: usize = 4;
                #[inline]
                fn prepare(&self, builder: &mut ::planus::Builder) -> Self::Value {
                    ::planus::WriteAs::prepare(self, builder)
                }
                #[inline]
                unsafe fn write_values(
                    values: &[::planus::Offset<Shutdown>],
                    bytes: *mut ::core::mem::MaybeUninit<u8>,
                    buffer_position: u32,
                ) {
                    let bytes = bytes as *mut [::core::mem::MaybeUninit<u8>; 4];
                    for (i, v) in ::core::iter::Iterator::enumerate(values.iter()) {
                        ::planus::WriteAsPrimitive::write(
                            v,
                            ::planus::Cursor::new(unsafe { &mut *bytes.add(i) }),
                            buffer_position - (Self::STRIDE * i) as u32,
                        );
                    }
                }
            }
            impl<'a> ::planus::ReadAsRoot<'a> for ShutdownRef<'a> {
                fn read_as_root(slice: &'a [u8]) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(
                            ::planus::SliceWithStartOffset {
                                buffer: slice,
                                offset_from_start: 0,
                            },
                            0,
                        )
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location("[ShutdownRef]", "read_as_root", 0)
                        })
                }
            }
            /// The union `Body` in the namespace `collimate.control`
            ///
            /// Generated from these locations:
            /// * Union `Body` in the file `schema/control.fbs:67`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub enum Body {
                /// The variant of type `Hello` in the union `Body`
                Hello(::planus::alloc::boxed::Box<self::Hello>),
                /// The variant of type `ErrorReport` in the union `Body`
                ErrorReport(::planus::alloc::boxed::Box<self::ErrorReport>),
                /// The variant of type `Goodbye` in the union `Body`
                Goodbye(::planus::alloc::boxed::Box<self::Goodbye>),
                /// The variant of type `Shutdown` in the union `Body`
                Shutdown(::planus::alloc::boxed::Box<self::Shutdown>),
            }
            impl Body {
                /// Creates a [BodyBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> BodyBuilder<::planus::Uninitialized> {
                    BodyBuilder(::planus::Uninitialized)
                }
                #[inline]
                pub fn create_hello(
                    builder: &mut ::planus::Builder,
                    value: impl ::planus::WriteAsOffset<self::Hello>,
                ) -> ::planus::UnionOffset<Self> {
                    ::planus::UnionOffset::new(1, value.prepare(builder).downcast())
                }
                #[inline]
                pub fn create_error_report(
                    builder: &mut ::planus::Builder,
                    value: impl ::planus::WriteAsOffset<self::ErrorReport>,
                ) -> ::planus::UnionOffset<Self> {
                    ::planus::UnionOffset::new(2, value.prepare(builder).downcast())
                }
                #[inline]
                pub fn create_goodbye(
                    builder: &mut ::planus::Builder,
                    value: impl ::planus::WriteAsOffset<self::Goodbye>,
                ) -> ::planus::UnionOffset<Self> {
                    ::planus::UnionOffset::new(3, value.prepare(builder).downcast())
                }
                #[inline]
                pub fn create_shutdown(
                    builder: &mut ::planus::Builder,
                    value: impl ::planus::WriteAsOffset<self::Shutdown>,
                ) -> ::planus::UnionOffset<Self> {
                    ::planus::UnionOffset::new(4, value.prepare(builder).downcast())
                }
            }
            impl ::planus::WriteAsUnion<Body> for Body {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::UnionOffset<Self> {
                    match self {
                        Self::Hello(value) => Self::create_hello(builder, value),
                        Self::ErrorReport(value) => {
                            Self::create_error_report(builder, value)
                        }
                        Self::Goodbye(value) => Self::create_goodbye(builder, value),
                        Self::Shutdown(value) => Self::create_shutdown(builder, value),
                    }
                }
            }
            impl ::planus::WriteAsOptionalUnion<Body> for Body {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::UnionOffset<Self>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsUnion::prepare(self, builder),
                    )
                }
            }
            /// Builder for serializing an instance of the [Body] type.
            ///
            /// Can be created using the [Body::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct BodyBuilder<T>(T);
            impl BodyBuilder<::planus::Uninitialized> {
                /// Creates an instance of the [`Hello` variant](Body#variant.Hello).
                #[inline]
                pub fn hello<T>(
                    self,
                    value: T,
                ) -> BodyBuilder<::planus::Initialized<1, T>>
                where
                    T: ::planus::WriteAsOffset<self::Hello>,
                {
                    BodyBuilder(::planus::Initialized(value))
                }
                /// Creates an instance of the [`ErrorReport` variant](Body#variant.ErrorReport).
                #[inline]
                pub fn error_report<T>(
                    self,
                    value: T,
                ) -> BodyBuilder<::planus::Initialized<2, T>>
                where
                    T: ::planus::WriteAsOffset<self::ErrorReport>,
                {
                    BodyBuilder(::planus::Initialized(value))
                }
                /// Creates an instance of the [`Goodbye` variant](Body#variant.Goodbye).
                #[inline]
                pub fn goodbye<T>(
                    self,
                    value: T,
                ) -> BodyBuilder<::planus::Initialized<3, T>>
                where
                    T: ::planus::WriteAsOffset<self::Goodbye>,
                {
                    BodyBuilder(::planus::Initialized(value))
                }
                /// Creates an instance of the [`Shutdown` variant](Body#variant.Shutdown).
                #[inline]
                pub fn shutdown<T>(
                    self,
                    value: T,
                ) -> BodyBuilder<::planus::Initialized<4, T>>
                where
                    T: ::planus::WriteAsOffset<self::Shutdown>,
                {
                    BodyBuilder(::planus::Initialized(value))
                }
            }
            impl<const N: u8, T> BodyBuilder<::planus::Initialized<N, T>> {
                /// Finish writing the builder to get an [UnionOffset](::planus::UnionOffset) to a serialized [Body].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::UnionOffset<Body>
                where
                    Self: ::planus::WriteAsUnion<Body>,
                {
                    ::planus::WriteAsUnion::prepare(&self, builder)
                }
            }
            impl<T> ::planus::WriteAsUnion<Body>
            for BodyBuilder<::planus::Initialized<1, T>>
            where
                T: ::planus::WriteAsOffset<self::Hello>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::UnionOffset<Body> {
                    ::planus::UnionOffset::new(1, (self.0).0.prepare(builder).downcast())
                }
            }
            impl<T> ::planus::WriteAsOptionalUnion<Body>
            for BodyBuilder<::planus::Initialized<1, T>>
            where
                T: ::planus::WriteAsOffset<self::Hello>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::UnionOffset<Body>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsUnion::prepare(self, builder),
                    )
                }
            }
            impl<T> ::planus::WriteAsUnion<Body>
            for BodyBuilder<::planus::Initialized<2, T>>
            where
                T: ::planus::WriteAsOffset<self::ErrorReport>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::UnionOffset<Body> {
                    ::planus::UnionOffset::new(2, (self.0).0.prepare(builder).downcast())
                }
            }
            impl<T> ::planus::WriteAsOptionalUnion<Body>
            for BodyBuilder<::planus::Initialized<2, T>>
            where
                T: ::planus::WriteAsOffset<self::ErrorReport>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::UnionOffset<Body>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsUnion::prepare(self, builder),
                    )
                }
            }
            impl<T> ::planus::WriteAsUnion<Body>
            for BodyBuilder<::planus::Initialized<3, T>>
            where
                T: ::planus::WriteAsOffset<self::Goodbye>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::UnionOffset<Body> {
                    ::planus::UnionOffset::new(3, (self.0).0.prepare(builder).downcast())
                }
            }
            impl<T> ::planus::WriteAsOptionalUnion<Body>
            for BodyBuilder<::planus::Initialized<3, T>>
            where
                T: ::planus::WriteAsOffset<self::Goodbye>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::UnionOffset<Body>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsUnion::prepare(self, builder),
                    )
                }
            }
            impl<T> ::planus::WriteAsUnion<Body>
            for BodyBuilder<::planus::Initialized<4, T>>
            where
                T: ::planus::WriteAsOffset<self::Shutdown>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::UnionOffset<Body> {
                    ::planus::UnionOffset::new(4, (self.0).0.prepare(builder).downcast())
                }
            }
            impl<T> ::planus::WriteAsOptionalUnion<Body>
            for BodyBuilder<::planus::Initialized<4, T>>
            where
                T: ::planus::WriteAsOffset<self::Shutdown>,
            {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::UnionOffset<Body>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsUnion::prepare(self, builder),
                    )
                }
            }
            /// Reference to a deserialized [Body].
            #[derive(Copy, Clone, Debug)]
            pub enum BodyRef<'a> {
                Hello(self::HelloRef<'a>),
                ErrorReport(self::ErrorReportRef<'a>),
                Goodbye(self::GoodbyeRef<'a>),
                Shutdown(self::ShutdownRef<'a>),
            }
            impl<'a> ::core::convert::TryFrom<BodyRef<'a>> for Body {
                type Error = ::planus::Error;
                fn try_from(value: BodyRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(
                        match value {
                            BodyRef::Hello(value) => {
                                Self::Hello(
                                    ::planus::alloc::boxed::Box::new(
                                        ::core::convert::TryFrom::try_from(value)?,
                                    ),
                                )
                            }
                            BodyRef::ErrorReport(value) => {
                                Self::ErrorReport(
                                    ::planus::alloc::boxed::Box::new(
                                        ::core::convert::TryFrom::try_from(value)?,
                                    ),
                                )
                            }
                            BodyRef::Goodbye(value) => {
                                Self::Goodbye(
                                    ::planus::alloc::boxed::Box::new(
                                        ::core::convert::TryFrom::try_from(value)?,
                                    ),
                                )
                            }
                            BodyRef::Shutdown(value) => {
                                Self::Shutdown(
                                    ::planus::alloc::boxed::Box::new(
                                        ::core::convert::TryFrom::try_from(value)?,
                                    ),
                                )
                            }
                        },
                    )
                }
            }
            impl<'a> ::planus::TableReadUnion<'a> for BodyRef<'a> {
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    tag: u8,
                    field_offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    match tag {
                        1 => {
                            ::core::result::Result::Ok(
                                Self::Hello(
                                    ::planus::TableRead::from_buffer(buffer, field_offset)?,
                                ),
                            )
                        }
                        2 => {
                            ::core::result::Result::Ok(
                                Self::ErrorReport(
                                    ::planus::TableRead::from_buffer(buffer, field_offset)?,
                                ),
                            )
                        }
                        3 => {
                            ::core::result::Result::Ok(
                                Self::Goodbye(
                                    ::planus::TableRead::from_buffer(buffer, field_offset)?,
                                ),
                            )
                        }
                        4 => {
                            ::core::result::Result::Ok(
                                Self::Shutdown(
                                    ::planus::TableRead::from_buffer(buffer, field_offset)?,
                                ),
                            )
                        }
                        _ => {
                            ::core::result::Result::Err(::planus::errors::ErrorKind::UnknownUnionTag {
                                tag,
                            })
                        }
                    }
                }
            }
            impl<'a> ::planus::VectorReadUnion<'a> for BodyRef<'a> {
                const VECTOR_NAME: &'static str = "[BodyRef]";
            }
            ///  The root of every control message.
            ///
            /// Generated from these locations:
            /// * Table `Control` in the file `schema/control.fbs:70`
            #[derive(
                Clone,
                Debug,
                PartialEq,
                PartialOrd,
                Eq,
                Ord,
                Hash,
                ::serde::Serialize,
                ::serde::Deserialize
            )]
            pub struct Control {
                /// The field `body` in the table `Control`
                pub body: self::Body,
            }
            impl Control {
                /// Creates a [ControlBuilder] for serializing an instance of this table.
                #[inline]
                pub fn builder() -> ControlBuilder<()> {
                    ControlBuilder(())
                }
                #[allow(clippy::too_many_arguments)]
                pub fn create(
                    builder: &mut ::planus::Builder,
                    field_body: impl ::planus::WriteAsUnion<self::Body>,
                ) -> ::planus::Offset<Self> {
                    let prepared_body = field_body.prepare(builder);
                    let mut table_writer: ::planus::table_writer::TableWriter<8> = ::core::default::Default::default();
                    table_writer.write_entry::<::planus::Offset<self::Body>>(1);
                    table_writer.write_entry::<u8>(0);
                    unsafe {
                        table_writer
                            .finish(
                                builder,
                                |object_writer| {
                                    object_writer.write::<_, _, 4>(&prepared_body.offset());
                                    object_writer.write::<_, _, 1>(&prepared_body.tag());
                                },
                            );
                    }
                    builder.current_offset()
                }
            }
            impl ::planus::WriteAs<::planus::Offset<Control>> for Control {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Control> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl ::planus::WriteAsOptional<::planus::Offset<Control>> for Control {
                type Prepared = ::planus::Offset<Self>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Control>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl ::planus::WriteAsOffset<Control> for Control {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Control> {
                    Control::create(builder, &self.body)
                }
            }
            /// Builder for serializing an instance of the [Control] type.
            ///
            /// Can be created using the [Control::builder] method.
            #[derive(Debug)]
            #[must_use]
            pub struct ControlBuilder<State>(State);
            impl ControlBuilder<()> {
                /// Setter for the [`body` field](Control#structfield.body).
                #[inline]
                #[allow(clippy::type_complexity)]
                pub fn body<T0>(self, value: T0) -> ControlBuilder<(T0,)>
                where
                    T0: ::planus::WriteAsUnion<self::Body>,
                {
                    ControlBuilder((value,))
                }
            }
            impl<T0> ControlBuilder<(T0,)> {
                /// Finish writing the builder to get an [Offset](::planus::Offset) to a serialized [Control].
                #[inline]
                pub fn finish(
                    self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Control>
                where
                    Self: ::planus::WriteAsOffset<Control>,
                {
                    ::planus::WriteAsOffset::prepare(&self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsUnion<self::Body>,
            > ::planus::WriteAs<::planus::Offset<Control>> for ControlBuilder<(T0,)> {
                type Prepared = ::planus::Offset<Control>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Control> {
                    ::planus::WriteAsOffset::prepare(self, builder)
                }
            }
            impl<
                T0: ::planus::WriteAsUnion<self::Body>,
            > ::planus::WriteAsOptional<::planus::Offset<Control>>
            for ControlBuilder<(T0,)> {
                type Prepared = ::planus::Offset<Control>;
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::core::option::Option<::planus::Offset<Control>> {
                    ::core::option::Option::Some(
                        ::planus::WriteAsOffset::prepare(self, builder),
                    )
                }
            }
            impl<T0: ::planus::WriteAsUnion<self::Body>> ::planus::WriteAsOffset<Control>
            for ControlBuilder<(T0,)> {
                #[inline]
                fn prepare(
                    &self,
                    builder: &mut ::planus::Builder,
                ) -> ::planus::Offset<Control> {
                    let (v0,) = &self.0;
                    Control::create(builder, v0)
                }
            }
            /// Reference to a deserialized [Control].
            #[derive(Copy, Clone)]
            pub struct ControlRef<'a>(
                #[allow(dead_code)]
                ::planus::table_reader::Table<'a>,
            );
            impl<'a> ControlRef<'a> {
                /// Getter for the [`body` field](Control#structfield.body).
                #[inline]
                pub fn body(&self) -> ::planus::Result<self::BodyRef<'a>> {
                    self.0.access_union_required(0, "Control", "body")
                }
            }
            impl<'a> ::core::fmt::Debug for ControlRef<'a> {
                fn fmt(
                    &self,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    let mut f = f.debug_struct("ControlRef");
                    f.field("body", &self.body());
                    f.finish()
                }
            }
            impl<'a> ::core::convert::TryFrom<ControlRef<'a>> for Control {
                type Error = ::planus::Error;
                #[allow(unreachable_code)]
                fn try_from(value: ControlRef<'a>) -> ::planus::Result<Self> {
                    ::core::result::Result::Ok(Self {
                        body: ::core::convert::TryInto::try_into(value.body()?)?,
                    })
                }
            }
            impl<'a> ::planus::TableRead<'a> for ControlRef<'a> {
                #[inline]
                fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::core::result::Result<Self, ::planus::errors::ErrorKind> {
                    ::core::result::Result::Ok(
                        Self(::planus::table_reader::Table::from_buffer(buffer, offset)?),
                    )
                }
            }
            impl<'a> ::planus::VectorReadInner<'a> for ControlRef<'a> {
                type Error = ::planus::Error;
                const STRIDE: usize = 4;
                unsafe fn from_buffer(
                    buffer: ::planus::SliceWithStartOffset<'a>,
                    offset: usize,
                ) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(buffer, offset)
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location(
                                    "[ControlRef]",
                                    "get",
                                    buffer.offset_from_start,
                                )
                        })
                }
            }
            /// # Safety
            /// The planus compiler generates implementations that initialize
            /// the bytes in `write_values`.
            unsafe impl ::planus::VectorWrite<::planus::Offset<Control>> for Control {
                type Value = ::planus::Offset<Control>;
                const STRIDE: usize = 4;
                #[inline]
                fn prepare(&self, builder: &mut ::planus::Builder) -> Self::Value {
                    ::planus::WriteAs::prepare(self, builder)
                }
                #[inline]
                unsafe fn write_values(
                    values: &[::planus::Offset<Control>],
                    bytes: *mut ::core::mem::MaybeUninit<u8>,
                    buffer_position: u32,
                ) {
                    let bytes = bytes as *mut [::core::mem::MaybeUninit<u8>; 4];
                    for (i, v) in ::core::iter::Iterator::enumerate(values.iter()) {
                        ::planus::WriteAsPrimitive::write(
                            v,
                            ::planus::Cursor::new(unsafe { &mut *bytes.add(i) }),
                            buffer_position - (Self::STRIDE * i) as u32,
                        );
                    }
                }
            }
            impl<'a> ::planus::ReadAsRoot<'a> for ControlRef<'a> {
                fn read_as_root(slice: &'a [u8]) -> ::planus::Result<Self> {
                    ::planus::TableRead::from_buffer(
                            ::planus::SliceWithStartOffset {
                                buffer: slice,
                                offset_from_start: 0,
                            },
                            0,
                        )
                        .map_err(|error_kind| {
                            error_kind
                                .with_error_location("[ControlRef]", "read_as_root", 0)
                        })
                }
            }
        }
    }
}
