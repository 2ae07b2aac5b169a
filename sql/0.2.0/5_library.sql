-- What the library does on changes and in the background.

CREATE FUNCTION ner_retriever.type_query(
    type_name text, OUT embedding real[], OUT fingerprint text, OUT dims integer
)
RETURNS SETOF record
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 10000 ROWS 1
AS 'MODULE_PATHNAME', 'ner_type_query_wrapper';
COMMENT ON FUNCTION ner_retriever.type_query(text) IS
'Embedding of a type''s name, and which model and head it comes from';

CREATE FUNCTION ner_retriever.feedback(query real[], nearest @extschema:vector@.vector[])
RETURNS real[]
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ner_feedback_wrapper';
COMMENT ON FUNCTION ner_retriever.feedback(real[], @extschema:vector@.vector[]) IS
'A type''s embedding after the mentions that are nearest to it, all of length 1';

CREATE FUNCTION ner_retriever.smooth(similarities real[], mentions @extschema:vector@.vector[])
RETURNS real[]
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ner_smooth_wrapper';
COMMENT ON FUNCTION ner_retriever.smooth(real[], @extschema:vector@.vector[]) IS
'Similarities of mentions, from near to far and of length 1, each after those of its like';

CREATE FUNCTION ner_retriever.words_near(type_name text, body text, start_char integer, end_char integer)
RETURNS real
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ner_words_near_wrapper';
COMMENT ON FUNCTION ner_retriever.words_near(text, text, integer, integer) IS
'What the words of a type that a text has near a mention add to the mention''s similarity';

CREATE FUNCTION ner_retriever.on_change()
RETURNS trigger
LANGUAGE c
-- Keys are kept as text: as one fixed way of writing them, whatever the session prefers.
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex' SET row_security = on
AS 'MODULE_PATHNAME', 'ner_on_change';
COMMENT ON FUNCTION ner_retriever.on_change() IS
'Tells a managed index of changed rows; only its own triggers have an effect';

CREATE FUNCTION ner_retriever.wake()
RETURNS void
LANGUAGE c
AS 'MODULE_PATHNAME', 'ner_wake_wrapper';
COMMENT ON FUNCTION ner_retriever.wake() IS
'Has a worker look at the queue when the transaction commits';

CREATE FUNCTION ner_retriever.start_worker()
RETURNS void
LANGUAGE c
AS 'MODULE_PATHNAME', 'ner_start_worker_wrapper';
COMMENT ON FUNCTION ner_retriever.start_worker() IS
'Has a worker look at the queue now';

-- What follows is for the worker alone.

CREATE FUNCTION ner_retriever.embed_rows(index_id integer, keys text[])
RETURNS integer[]
LANGUAGE c STRICT
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex' SET row_security = on
AS 'MODULE_PATHNAME', 'ner_embed_rows_wrapper';
COMMENT ON FUNCTION ner_retriever.embed_rows(integer, text[]) IS
'Replaces the mentions of rows, with their owner''s rights. Returns which of the keys are to be done again';

CREATE FUNCTION ner_retriever.execute_as(owner oid, statement text)
RETURNS bigint
LANGUAGE c STRICT
SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex' SET row_security = on
AS 'MODULE_PATHNAME', 'ner_execute_as_wrapper';
COMMENT ON FUNCTION ner_retriever.execute_as(oid, text) IS
'Runs a statement with the rights of a role, which it cannot leave. Returns the number of rows';

CREATE FUNCTION ner_retriever.depend_on(
    class oid, object oid, referenced_class oid, referenced oid, referenced_column integer, auto boolean
)
RETURNS void
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'ner_depend_on_wrapper';
COMMENT ON FUNCTION ner_retriever.depend_on(oid, oid, oid, oid, integer, boolean) IS
'Has an object dropped together with another: by itself, or only with CASCADE';
