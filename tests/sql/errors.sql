-- What users are told. DETAIL and CONTEXT would show here, if there were any.
\set VERBOSITY default

select ner_type_embedding('');
\echo :LAST_ERROR_SQLSTATE
select ner_type_embedding(repeat('river ', 3000));
\echo :LAST_ERROR_SQLSTATE
select ner_type_embedding(' ', array['Rome']);
\echo :LAST_ERROR_SQLSTATE
select ner_type_embedding('city', array[repeat('x', 1024 * 1024)]);
\echo :LAST_ERROR_SQLSTATE
select ner_refine_type('city', '[1,2,3]'::vector);
\echo :LAST_ERROR_SQLSTATE
select ner_refine_type('', '[1,2,3]'::vector);
\echo :LAST_ERROR_SQLSTATE
select ner_refine_type_final('{1,2,3}');
\echo :LAST_ERROR_SQLSTATE
select ner_refine_type_final('{1,NULL}');
\echo :LAST_ERROR_SQLSTATE
select ner_refine_type_add('{NaN,0}', 'city', '[1]'::vector);
\echo :LAST_ERROR_SQLSTATE
set ner_retriever.detection_threshold = 2;
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings('Rome', array[int4range(0, 5)]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings('Rome', array[int4range(-1, 2)]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings('Rome', array[int4range(0, 2), int4range(2, 2)]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings('Rome', array[null::int4range]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings('Rome', array[int4range(1, null)]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings('a b', array[int4range(1, 2)]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings(repeat('x', 1024 * 1024));
\echo :LAST_ERROR_SQLSTATE
select * from ner_entity_embeddings(array['Rome', repeat('x', 1024 * 1024)]);
\echo :LAST_ERROR_SQLSTATE
select * from ner_entities(repeat('x', 1024 * 1024));
\echo :LAST_ERROR_SQLSTATE
select ner_type_embedding(repeat('x', 1024 * 1024));
\echo :LAST_ERROR_SQLSTATE

-- A call that is too long for its session.
set statement_timeout = '50ms';
select count(*) from ner_entity_embeddings(array_fill('Ada Lovelace lived in London. '::text, array[5000]));
\echo :LAST_ERROR_SQLSTATE
reset statement_timeout;
set ner_retriever.request_timeout = '50ms';
select count(*) from ner_entity_embeddings(array_fill('Ada Lovelace lived in London. '::text, array[5000]));
\echo :LAST_ERROR_SQLSTATE
reset ner_retriever.request_timeout;

-- The configuration is not a session's.
set ner_retriever.model = 'mine.gguf';
\echo :LAST_ERROR_SQLSTATE
set ner_retriever.device = 'cpu';
\echo :LAST_ERROR_SQLSTATE

-- A model that is not there, and the default again. A reload ends the engine.
alter system set ner_retriever.model = '/nowhere/model.gguf';
select pg_reload_conf();
select pg_sleep(2);
select ner_type_embedding('city');
\echo :LAST_ERROR_SQLSTATE
alter system reset ner_retriever.model;
select pg_reload_conf();
select pg_sleep(2);
select vector_dims(ner_type_embedding('city')) > 1 as works;
